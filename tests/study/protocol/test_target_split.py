"""Target images that a study never sees."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small import run

from data_prep import UserError
from data_prep.feature_store import FeatureSet, load, load_target_labels
from study.protocol.target_split import split_target
from study.protocol.trial_data import trial_data


@pytest.fixture(scope="module")
def features(embedded_cache: Path) -> FeatureSet:
    return load(embedded_cache)


def test_a_share_is_drawn_with_the_seed_and_trials_see_the_rest(features: FeatureSet, embedded_cache: Path) -> None:
    shown, new = split_target(features, 0.25, 0)
    count = len(features.target.keys)
    assert len(new.target.keys) == round(0.25 * count) and len(shown.target.keys) == count - round(0.25 * count)
    assert not set(shown.target.keys.to_pylist()) & set(new.target.keys.to_pylist())
    for part in (shown, new):
        rows_T = part.target.rows_I
        assert rows_T is not None and torch.equal(part.target.features_ID, features.target.features_ID[rows_T])
        assert part.target.keys.to_pylist() == np.array(features.target.keys.to_pylist())[rows_T].tolist()
        labels_T = load_target_labels(embedded_cache, part.target)
        assert torch.equal(labels_T, load_target_labels(embedded_cache)[rows_T])
    again, other = split_target(features, 0.25, 0)[1], split_target(features, 0.25, 1)[1]
    assert torch.equal(again.target.features_ID, new.target.features_ID)
    assert again.target.keys != other.target.keys
    seen = trial_data(shown, rotation=0, folds=3, seed=0).target_features_TD
    assert torch.equal(seen, shown.target.features_ID)


def test_the_benchmark_s_own_test_images(features: FeatureSet) -> None:
    split_I = torch.zeros(len(features.target.keys), dtype=torch.int8)
    split_I[::3] = 2
    shown, new = split_target(replace(features, target=replace(features.target, split_I=split_I)), "split", 0)
    assert torch.equal(new.target.features_ID, features.target.features_ID[::3])
    assert set(shown.target.split_I.tolist()) == {0}
    alike = replace(features, target=replace(features.target, split_I=split_I * 0 + 2))
    with pytest.raises(UserError, match="test_share must leave target images on both sides, split holds 1308 of 1308"):
        split_target(alike, "split", 0)
    with pytest.raises(UserError, match="test_share must leave target images on both sides, 0.0001 holds 0 of 1308"):
        split_target(features, 1e-4, 0)


def test_a_study_scores_them_as_a_second_column(
    embedded_cache: Path, tmp_path: Path, without_tune: None, capsys: pytest.CaptureFixture[str]
) -> None:
    share = ["--test-share", "0.25", "--baselines", "zlap"]
    assert run(tmp_path, embedded_cache, "--name", "share", *share) == 0
    assert "H new" in capsys.readouterr().out
    board = pd.read_parquet(tmp_path / "share/leaderboard.parquet").set_index("config_id")
    assert board.loc["sre-consensus", "new_h_mean"] != board.loc["sre-consensus", "new_h_mean"]  # no model of its own
    others = board.drop("sre-consensus")
    assert others.new_h_mean.between(0, 1).all() and (others.new_h_gain_lo <= others.new_h_gain_hi).all()
    assert board.loc["zero-shot-ensemble", "new_h_gain"] == 0
    assert len(pd.read_parquet(tmp_path / "share/predictions.parquet").key.unique()) == 1308 - 327
    # an adapter classifies them as the refit did
    adapter = json.loads((tmp_path / "share/adapters/selected/config.json").read_text())
    assert adapter["leaderboard"]["new_h_mean"] == board.loc[adapter["leaderboard"]["config_id"], "new_h_mean"]
    report = (tmp_path / "share/report.html").read_text()
    assert "On target images that neither training nor selection saw it reaches H = " in report and "H new" in report
    # another share is another study
    assert run(tmp_path, embedded_cache, "--name", "share", "--test-share", "0.3", *share[2:], "--resume") == 2
    assert "test_share was 0.25, now 0.3" in capsys.readouterr().err
