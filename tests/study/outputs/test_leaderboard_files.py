"""The leaderboard's files: literal rows in, the same rows out of every format."""

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
from rich.console import Console
from rows import ROWS, row

from study.evaluation.leaderboard import rank_rows
from study.evaluation.leaderboard_text import to_markdown, to_terminal
from study.outputs.folder import open_storage
from study.outputs.leaderboard_files import read_leaderboard, write_leaderboard

COLUMNS = (
    "rank method config_id select benchmark clip val_h_mean val_h_std test_known_micro test_unknown_micro "
    "test_all_micro test_seen_mean test_unseen_mean test_h_mean test_h_std h_gain h_gain_lo h_gain_hi n_seeds "
    "train_seconds feature_fingerprint source params selected pareto test_t1 test_ausuc test_h_oracle_tau "
    "h_behind h_behind_lo h_behind_hi val_criterion val_consensus val_agreement "
    "val_h_mi val_mi val_alike new_seen_mean new_unseen_mean new_h_mean new_h_std "
    "new_h_gain new_h_gain_lo new_h_gain_hi test_h_of_means test_other_side"
).split()


def test_columns_are_those_promised_and_rows_survive_every_format(tmp_path: Path) -> None:
    storage, ranked = open_storage(str(tmp_path), "study"), rank_rows(ROWS)
    paths = write_leaderboard(storage, ranked)
    assert [Path(p).name for p in paths] == ["leaderboard.parquet", "leaderboard.csv", "leaderboard.md"]
    assert pyarrow.parquet.read_schema(paths[0]).names == [*COLUMNS, "study"]
    assert read_leaderboard(storage) == ranked
    with open(paths[1], newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == COLUMNS
    assert lines[0]["config_id"] == "sre-0001" and float(lines[0]["test_h_mean"]) == 0.33
    assert json.loads(lines[0]["params"]) == {"lr": 0.1, "text": 'a "quoted", | value'}
    assert lines[3]["test_h_mean"] == ""
    text = Path(paths[2]).read_text()
    assert "| 2 | SRE-CLIP (selected) | sre-0002 | pseudo-unseen | 42.00 ± 1.00 |" in text
    assert "| 32.00 ± 0.50 | +1.23 [+0.10, +2.00] |  | 3 | this study |" in text
    assert "oracle" not in text.lower()
    assert sorted(os.listdir(tmp_path / "study")) == ["leaderboard.csv", "leaderboard.md", "leaderboard.parquet"]


def test_an_interrupted_study_is_marked_everywhere(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), "study")
    parquet, _, markdown = write_leaderboard(storage, rank_rows(ROWS), interrupted=True)
    assert pyarrow.parquet.read_schema(parquet).metadata[b"note"].startswith(b"INTERRUPTED")
    assert "**INTERRUPTED: the study was ended before it was finished." in Path(markdown).read_text()
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(to_terminal(rank_rows(ROWS), interrupted=True))
    assert "INTERRUPTED: " in console.export_text()


def test_an_oracle_is_marked_everywhere(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), "study")
    ranked = rank_rows([row("SRE-CLIP", "sre-0001", val=0.4, h=0.33, select="oracle")])
    parquet, _, markdown = write_leaderboard(storage, ranked)
    assert pyarrow.parquet.read_schema(parquet).metadata[b"note"].startswith(b"ORACLE")
    assert "**ORACLE: " in Path(markdown).read_text() and "SRE-CLIP (oracle, selected)" in to_markdown(ranked)
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(to_terminal(ranked))
    shown = console.export_text()
    assert "ORACLE: " in shown and "SRE-CLIP (oracle)" in shown


def test_the_terminal_says_how_many_choices_agree_as_well_as_the_selected_one() -> None:
    def said(**fields: Any) -> str:
        shown = io.StringIO()
        rows = rank_rows([replace(ROWS[1], **fields)])
        Console(file=shown, width=160).print(to_terminal(rows))
        return " ".join(shown.getvalue().split())

    assert "best by validation; 4 % of the other choices agree with the consensus as well" in said(val_alike=0.04)
    assert "as well" not in said()
