"""The leaderboard: how rows are ranked, selected and averaged."""

from dataclasses import replace

import pytest
from rows import ROWS

from study.evaluation.leaderboard import mean_over_seeds, rank_rows


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
