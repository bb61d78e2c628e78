"""Candidates: configurations to refit, and where they came from."""

import json
from pathlib import Path
from typing import Any

from data_prep import UserError
from search_spaces import Space
from study.outputs.folder import open_storage
from study.outputs.leaderboard_files import read_leaderboard
from study.training.methods import method_of


def winner_params(study: Path, space: Space, rotation: int) -> dict[str, Any]:
    """The configuration that a study selected (in this rotation, if it had several), without its swept knobs."""
    of_rotation = study / f"rotation-{rotation}"
    folder = of_rotation if of_rotation.exists() else study
    try:
        rows = read_leaderboard(open_storage(str(folder.parent), folder.name))
    except FileNotFoundError:
        raise UserError(f"--winner must be the folder of a finished study, got {study}") from None
    for row in rows:
        if row.selected and row.method == space.method:
            swept = method_of(space).swept
            return {k: v for k, v in json.loads(row.params).items() if k not in swept}
    raise UserError(f"--winner must be a study of {space.method}, got {study}")
