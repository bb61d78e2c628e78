"""The leaderboard: how rows are ranked, selected and averaged."""

from dataclasses import replace

import pytest
from rows import ROWS

from study.evaluation.leaderboard import h_of_means, mean_over_seeds, notes, rank_rows
from study.evaluation.leaderboard_text import to_markdown
from study.evaluation.published import published_rows


def test_rows_are_ranked_by_mean_test_h_and_selected_by_validation() -> None:
    ranked = rank_rows(ROWS)
    assert [(r.rank, r.config_id, r.selected) for r in ranked] == [
        (1, "sre-0001", False),
        (2, "sre-0002", True),
        (3, "zero-shot", False),
        (4, "paper", False),
    ]


def test_scores_of_different_criteria_choose_nothing() -> None:
    other = replace(ROWS[2], val_criterion="mi", val_mi=0.1)  # another scale: neither of both is the better one
    with pytest.raises(ValueError, match="^SRE-CLIP has scores of h and of mi$"):
        rank_rows([ROWS[1], other])


def test_test_columns_are_means_over_seeds() -> None:
    seeds = [{"test_h": 0.2, "test_seen_mean": 0.5}, {"test_h": 0.4, "test_seen_mean": 0.7}]
    columns = mean_over_seeds(seeds)
    assert columns == pytest.approx({"test_h_mean": 0.3, "test_h_std": 0.02**0.5, "test_seen_mean": 0.6, "n_seeds": 2})


def test_a_division_that_does_not_carry_over_is_said() -> None:
    shares = (0.0, 0.9, 0.6, None)
    ranked = rank_rows([replace(row, test_other_side=share) for row, share in zip(ROWS, shares, strict=True)])
    (note,) = notes(ranked, interrupted=False)
    assert "or the other way round: SRE-CLIP for 60 %. What divides" in note  # of a method its selected row only
    assert note in to_markdown(ranked)
    assert not notes([replace(row, test_other_side=0.33) for row in ranked], interrupted=False)


def test_h_of_means_stands_beside_published_rows_only() -> None:
    assert h_of_means(0.8426, 0.7610) == pytest.approx(0.7997, abs=5e-5)  # PromptSRC's own figure of 11 data sets
    assert h_of_means(None, 0.7) is None
    (ours,) = rank_rows([replace(ROWS[2], test_h_mean=0.70, test_h_of_means=0.71)])
    alone, beside = to_markdown([ours]), to_markdown([ours, *published_rows("dtd")])
    assert "| H of means |" not in alone
    heading, _, *rows = [line.split(" | ") for line in beside.splitlines() if line.startswith("|")]
    place = heading.index("H of means")
    assert [row[place - 1 : place + 1] for row in rows[:2]] == [["70.00 ± 0.50", "71.00"], ["71.70", "71.70"]]
