"""Published rows: only numbers of their source, unranked, and only beside their own benchmark."""

import pytest

from data_prep.benchmarks import BENCHMARKS
from study.evaluation.leaderboard import rank_rows
from study.evaluation.leaderboard_text import to_markdown
from study.evaluation.published import ON_BENCHMARK, published_rows


def test_they_stand_beside_benchmarks_that_exist() -> None:
    assert set(ON_BENCHMARK) <= set(BENCHMARKS)


def test_a_published_row_is_marked_and_has_no_rank() -> None:
    (row,) = published_rows("i2awa")
    assert (row.rank, row.method, row.test_unknown_micro) == (0, "SRE-CLIP Adapter", pytest.approx(0.984))
    assert row.source.startswith("published: ") and row.test_h_mean is None and row.h_gain is None
    assert "| – | SRE-CLIP Adapter |" in to_markdown([row])


def test_harmonic_means_are_those_of_the_averages_they_stand_beside() -> None:
    rows = [r for r in published_rows("dtd:shots=16,seed=2") if r.test_h_mean]
    assert [r.method for r in rows] == ["CLIP", "CoOp", "CoCoOp", "MaPLe", "PromptSRC", "PVA"]
    for r in rows:
        assert r.test_known_micro and r.test_unknown_micro
        h = 2 * r.test_known_micro * r.test_unknown_micro / (r.test_known_micro + r.test_unknown_micro)
        assert r.test_h_mean == pytest.approx(h, abs=1e-4 if r.method != "PVA" else 1e-3)  # printed to one digit


def test_the_embedded_benchmark_has_none() -> None:
    assert published_rows("icons2emoji") == []
    assert rank_rows([]) == []
