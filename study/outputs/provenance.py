"""What a result says of where it comes from, enough to make it again; and options read back from that."""

import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray

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


def jsonable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON holds them."""
    return {
        k: jsonable(v) if isinstance(v, Mapping) else str(v) if isinstance(v, Path) else v for k, v in options.items()
    }


def command() -> str:
    """What was typed."""
    return shlex.join(["python", *sys.argv])
