"""A study's options, resolved and checked before any work."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import search_spaces
from data_prep import UserError
from data_prep.storage import locate
from search_spaces import Ablation, Space
from study.options import Options, SearchOptions, SelectionOptions, StudyOptions


def options_of_row(options: Options) -> tuple[Options, dict[str, Any]]:
    """The options under which a row was made, with the resources and outputs of now; and its `configs/ID.json`."""
    assert options.study.rerun is not None  # the caller sees to it
    try:
        folder, _, file = options.study.rerun.rpartition("/")
        row = json.loads(locate(folder or ".", option="rerun").read(file) or b"null")
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


def baselines_of(chosen: str, space: Space, is_ablation: bool) -> list[Space]:
    """The spaces of `--baselines`; auto: the method's, and none for an ablation. Raises `ValueError`."""
    if chosen == "auto":
        chosen = "none" if is_ablation else "all"
    names = {"all": space.baselines, "none": ()}.get(chosen, tuple(filter(None, chosen.split(","))))
    loaded = [search_spaces.load(name, option="baselines") for name in names]
    for baseline in loaded:
        if isinstance(baseline, Ablation):
            raise UserError(f"--baselines must be methods' spaces, not ablations; got {baseline.name}")
    return [s for s in loaded if isinstance(s, Space)]


def check_workers(options: Options, spaces: Sequence[Space]) -> None:
    """Raise `UserError` where the workers of a pack or a refit could not share its batches, or their GPUs."""
    resources = options.resources
    gpus = resources.gpus_per_pack
    for option, workers in (
        ("--workers-per-pack", resources.workers_per_pack),
        ("--refit-workers", resources.refit_workers),
    ):
        for space in spaces:
            choices = next((k.choices for k in space.knobs if k.name == "batch_size" and k.choices), None)
            batches = [int(b) for b in choices or (space.config().batch_size,)]
            odd = [b for b in batches if workers and b % workers]
            if odd:
                raise UserError(f"{option} must divide every batch size of {space.name}, got {workers} for {odd[0]}")
        if workers > 1 and gpus % 1:
            raise UserError(f"{option} needs whole GPUs, got {workers} workers with --gpus-per-pack {gpus:g}")
    if resources.workers_per_pack > 1 and options.search.refill:
        raise UserError(f"--workers-per-pack must be 1 with --refill, got {resources.workers_per_pack}")
