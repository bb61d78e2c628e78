"""Several studies in one ranking."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pytest

from data_prep.errors import UserError
from data_prep.storage import locate
from study.compare import main
from study.evaluation.leaderboard import Row, rank_rows
from study.outputs.folder import open_storage, write_table
from study.outputs.leaderboard_files import read_leaderboard, write_leaderboard
from study.outputs.provenance import RecordedOptions, RunRecord, write_run
from study.reporting.comparison import (
    MeanRanks,
    between_winners,
    compare,
    comparison_page,
    indistinct_groups,
    load_studies,
    mean_ranks,
    unequal,
)


def write_study(
    folder: Path,
    benchmark: str,
    h: dict[str, float],
    select: str = "pseudo-unseen",
    status: Literal["finished", "interrupted"] = "finished",
) -> Path:
    storage = open_storage(str(folder.parent), folder.name)
    row = Row(method="", config_id="", select=select, benchmark=benchmark, clip="c", feature_fingerprint="f", n_seeds=1)
    rows = [
        replace(row, method=m, config_id=f"{m}-0", test_h_mean=v, val_h_mean=v, val_criterion="h", params='{"a": 1}')
        for m, v in h.items()
    ]
    write_leaderboard(storage, rank_rows(rows))
    options = RecordedOptions(by_group={"study": {"rotation": 0}})
    write_run(storage, RunRecord(name=folder.name, reference="A", options=options, status=status))
    return folder


@pytest.fixture
def five(tmp_path: Path) -> list[Path]:
    """A is always best; C beats B twice."""
    values = [(0.9, 0.5, 0.4), (0.8, 0.5, 0.4), (0.7, 0.5, 0.4), (0.6, 0.1, 0.4), (0.5, 0.1, 0.4)]
    return [write_study(tmp_path / f"s{i}", f"set{i}", dict(zip("ABC", h, strict=True))) for i, h in enumerate(values)]


def test_rows_are_ranked_within_their_task(five: list[Path]) -> None:
    rows = compare(load_studies(five))
    assert rows.task.nunique() == 5 and rows[rows.method == "A"]["rank"].tolist() == [1] * 5
    assert rows[rows.method == "B"]["rank"].tolist() == [2, 2, 2, 3, 3]


def test_mean_ranks_and_critical_difference_are_those_of_the_textbook(five: list[Path]) -> None:
    ranking = mean_ranks(compare(load_studies(five)))
    assert ranking and ranking.ranks.to_dict() == pytest.approx({"A": 1.0, "B": 2.4, "C": 2.6})
    # Demsar's table: q = 2.343 for three classifiers; 2.343 * sqrt(3 * 4 / (6 * 5))
    assert ranking.critical_difference == pytest.approx(2.343 * (12 / 30) ** 0.5, abs=2e-3)
    # 12 n / (k (k + 1)) * (sum R^2 - k (k + 1)^2 / 4) = 7.6, chi squared with two degrees of freedom
    assert ranking.friedman_p == pytest.approx(0.02237, abs=1e-4)
    assert indistinct_groups(ranking) == [(1.0, 2.4), (2.4, 2.6)]


def test_interrupted_studies_are_marked(five: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = write_study(tmp_path / "half", "set0", {"A": 0.95}, status="interrupted")
    assert main([*map(str, five), str(half), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("INTERRUPTED, so not these studies' results: half\n")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "results: half</p>" in page and page.count('<span class="mark">interrupted</span>') == 1


def test_under_four_benchmarks_there_is_no_test(five: list[Path]) -> None:
    ranking = mean_ranks(compare(load_studies(five[:3])))
    assert isinstance(ranking, MeanRanks) and ranking.critical_difference is None and ranking.friedman_p is None
    assert mean_ranks(compare(load_studies(five[:1]))) is None


def test_a_method_that_lacks_a_task_has_no_mean_rank(five: list[Path], tmp_path: Path) -> None:
    more = write_study(tmp_path / "more", "set9", {"A": 0.5, "B": 0.4})
    ranking = mean_ranks(compare(load_studies([*five, more])))
    assert ranking and sorted(ranking.ranks.index) == ["A", "B"]


def test_of_two_studies_of_a_method_both_are_shown_and_the_better_by_selection_counts(
    five: list[Path], tmp_path: Path
) -> None:
    again = write_study(tmp_path / "again", "set3", {"B": 0.45})
    rows = compare(load_studies([*five, again]))
    assert len(rows[(rows.benchmark == "set3") & (rows.method == "B")]) == 2
    ranking = mean_ranks(rows)
    assert ranking and ranking.ranks["B"] == pytest.approx((2 + 2 + 2 + 2 + 3) / 5)


def test_oracles_and_honest_studies_do_not_mix(five: list[Path], tmp_path: Path) -> None:
    oracle = write_study(tmp_path / "cheat", "set0", {"A": 0.99}, select="oracle")
    with pytest.raises(UserError, match="one ranking cannot hold both: cheat"):
        load_studies([*five, oracle])
    alone = load_studies([oracle])
    assert "ORACLE" in comparison_page(alone, compare(alone))


def test_the_page_holds_rows_and_diagram(five: list[Path]) -> None:
    studies = load_studies([*five, five[0].parent])  # a folder that is no study is passed over
    page = comparison_page(studies, compare(studies))
    assert page.partition("<script>")[0].count("<tr") == 1 + 15 and "chart-ranks" in page and "p = 0.0224" in page


def test_the_command_writes_page_and_table(five: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*map(str, five), "--out", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["comparison.html", "comparison.parquet"]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "comparison.html")


def test_no_study_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="folders with a leaderboard.parquet"):
        load_studies([tmp_path])
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: studies must be folders with a leaderboard.parquet, got {tmp_path}\n"


def test_missing_folders_are_named_and_others_passed_over(
    five: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="missing: .*/s9 .nearest: .*/s[0-4]."):
        load_studies([*five, tmp_path / "s9"])
    (tmp_path / "running").mkdir()
    assert main([*map(str, five), str(tmp_path / "running"), "--out", str(tmp_path / "out")]) == 0
    assert f"passed over, without a leaderboard: {tmp_path}/running" in capsys.readouterr().out


def test_unequal_budgets_are_said(tmp_path: Path) -> None:
    folders = [write_study(tmp_path / name, "set", {"A": h}) for name, h in (("a", 0.5), ("b", 0.6))]
    for folder, configs in zip(folders, (16, 64), strict=True):
        options = {"search": {"configs": configs, "epochs": 20}, "selection": {"seeds": 3}}
        write_run(locate(folder), RunRecord(name=folder.name, reference="A", options=RecordedOptions(by_group=options)))
    assert unequal(load_studies(folders)) == ["UNEQUAL configs: 16 (a), 64 (b)"]
    other = write_study(tmp_path / "c", "other set", {"A": 0.5})
    assert unequal(load_studies([folders[0], other])) == []  # of an older version, which recorded none


def test_winners_of_one_task_are_compared_on_the_same_resamples(tmp_path: Path) -> None:
    for name, h in (("a", [0.5, 0.4, 0.6]), ("b", [0.6, 0.55, 0.61])):
        folder = write_study(tmp_path / name, "set", {"A": h[0]})
        write_table(locate(folder), "resamples", pa.table({"method": ["A"], "config_id": ["A-0"], "h": [h]}))
    (line,) = between_winners(load_studies([tmp_path / "a", tmp_path / "b"]))
    assert line == "b leads a by +10.00 points of H [+1.35, +14.65]"


def test_a_task_is_known_by_its_features(tmp_path: Path) -> None:
    first, second = (write_study(tmp_path / name, "folder:pets", {"A": 0.5}) for name in ("a", "b"))
    rows = read_leaderboard(locate(second))
    write_leaderboard(locate(second), [replace(row, feature_fingerprint="0123456789") for row in rows])
    tasks = set(compare(load_studies([first, second])).task)
    assert tasks == {"folder:pets, rotation 0, c, features f", "folder:pets, rotation 0, c, features 01234567"}
