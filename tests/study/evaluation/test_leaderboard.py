"""The leaderboard: literal rows in, the same rows out of every format."""

import csv
import io
import json
import os
from pathlib import Path

import pyarrow.parquet
import pytest
from rich.console import Console

from data_prep.errors import UserError
from data_prep.storage import pull, push
from study.evaluation.leaderboard import Row, mean_over_seeds, rank_rows
from study.evaluation.leaderboard_text import to_markdown, to_terminal
from study.outputs.folder import open_storage
from study.outputs.leaderboard_files import read_leaderboard, write_config, write_leaderboard, write_run

COLUMNS = (
    "rank method config_id select benchmark clip val_h_mean val_h_std test_known_micro test_unknown_micro "
    "test_all_micro test_seen_mean test_unseen_mean test_h_mean test_h_std h_gain h_gain_lo h_gain_hi n_seeds "
    "train_seconds feature_fingerprint source params selected pareto test_t1 test_ausuc test_h_oracle_tau "
    "h_behind h_behind_lo h_behind_hi val_score"
).split()


def row(method: str, config_id: str, *, val: float | None, h: float | None, select: str = "pseudo-unseen") -> Row:
    return Row(
        method=method,
        config_id=config_id,
        select=select,
        benchmark="icons2emoji",
        clip="embedded",
        val_h_mean=val,
        val_score=val,
        val_h_std=None if val is None else 0.01,
        test_h_mean=h,
        test_h_std=0.005,
        h_gain=None if val is None else 0.0123,
        h_gain_lo=None if val is None else 0.001,
        h_gain_hi=None if val is None else 0.02,
        n_seeds=3,
        feature_fingerprint="abc",
        params=json.dumps({"lr": 0.1, "text": 'a "quoted", | value'}),
    )


ROWS = [
    row("CLIP zero-shot", "zero-shot", val=None, h=0.30),
    row("SRE-CLIP", "sre-0001", val=0.40, h=0.33),
    row("SRE-CLIP", "sre-0002", val=0.42, h=0.32),
    row("Published", "paper", val=None, h=None),
]


def test_rows_are_ranked_by_mean_test_h_and_selected_by_validation() -> None:
    ranked = rank_rows(ROWS)
    assert [(r.rank, r.config_id, r.selected) for r in ranked] == [
        (1, "sre-0001", False),
        (2, "sre-0002", True),
        (3, "zero-shot", False),
        (4, "paper", False),
    ]


def test_columns_are_those_promised_and_rows_survive_every_format(tmp_path: Path) -> None:
    storage, ranked = open_storage(str(tmp_path), "study"), rank_rows(ROWS)
    paths = write_leaderboard(storage, ranked)
    assert [Path(p).name for p in paths] == ["leaderboard.parquet", "leaderboard.csv", "leaderboard.md"]
    assert pyarrow.parquet.read_schema(paths[0]).names == COLUMNS
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


def test_test_columns_are_means_over_seeds() -> None:
    seeds = [{"test_h": 0.2, "test_seen_mean": 0.5}, {"test_h": 0.4, "test_seen_mean": 0.7}]
    columns = mean_over_seeds(seeds)
    assert columns == pytest.approx({"test_h_mean": 0.3, "test_h_std": 0.1, "test_seen_mean": 0.6, "n_seeds": 2})


def test_json_files(tmp_path: Path) -> None:
    storage = open_storage(f"file://{tmp_path}", "study")
    write_config(storage, "sre-0001", {"params": {"lr": 0.1}})
    write_run(storage, {"command": "run"})
    assert json.loads((tmp_path / "study/configs/sre-0001.json").read_text()) == {"params": {"lr": 0.1}}
    assert json.loads((tmp_path / "study/run.json").read_text()) == {"command": "run"}


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_a_name_cannot_leave_the_storage(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--name must be"):
        open_storage(str(tmp_path), name)


def test_storage_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="^storage must be writable: .*file/study") as caught:
        open_storage(str(tmp_path / "file"), "study")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="^storage must be a folder or a URI"):
        open_storage("nowhere://bucket", "study")


def test_the_ledgers_copy_is_fetched_only_if_it_holds_more(tmp_path: Path) -> None:
    storage, file = open_storage(str(tmp_path / "remote"), "study"), tmp_path / "local" / "study.journal"
    pull(storage, file)
    assert not file.exists()
    storage.write("study.journal", b"one\ntwo\n")
    pull(storage, file)
    assert file.read_bytes() == b"one\ntwo\n"
    file.write_bytes(b"one\ntwo\nthree\n")
    pull(storage, file)
    push(storage, file)
    assert storage.read("study.journal") == b"one\ntwo\nthree\n"
