"""What a result says of where it comes from, enough to make it again; and options read back from that."""

import json
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray

from data_prep import UserError
from data_prep.storage import locate
from study.options import Options, SearchOptions, SelectionOptions, StudyOptions

PACKAGES = ("ray", "torch", "transformers", "optuna", "numpy", "pyarrow", "networkx")


def machine_and_versions() -> dict[str, Any]:
    """Packages, processor and the cluster's resources."""
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "hardware": {
            "machine": platform.machine(),
            "cluster": {k: v for k, v in ray.cluster_resources().items() if ":" not in k},
        },
    }


def options_of_row(options: Options) -> tuple[Options, dict[str, Any]]:
    """The options under which a row was made, with the resources and outputs of now; and its `configs/ID.json`."""
    assert options.study.rerun is not None  # the caller sees to it
    try:
        folder, _, file = options.study.rerun.rpartition("/")
        row = json.loads(locate(folder or ".", option="--rerun").read(file) or b"null")
        of_row = {block: dict(row["options"][block]) for block in ("study", "search", "selection")}
        root, no_ablation = of_row["study"]["data_root"], {"winner": None, "re_search": False}
        study = {
            **of_row["study"],
            "data_root": Path(root) if root else None,
            "templates": tuple(of_row["study"]["templates"]),
            **{name: row[name] for name in ("space", "rotation")},
            "rerun": options.study.rerun,
        }
        restored = replace(
            options,
            study=StudyOptions(**study),
            search=SearchOptions(**{**of_row["search"], "baselines": "none"}),
            selection=SelectionOptions(**{**of_row["selection"], **no_ablation, "criterion": row["criterion"]}),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--rerun must be a file configs/ID.json of a study of this version, got {options.study.rerun}: {error!r}"
        ) from None
    return restored, row


def jsonable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON holds them."""
    return {
        k: jsonable(v) if isinstance(v, Mapping) else str(v) if isinstance(v, Path) else v for k, v in options.items()
    }


def command() -> str:
    """What was typed."""
    return shlex.join(["python", *sys.argv])
