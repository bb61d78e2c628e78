"""Folds of seen classes, and held-out images."""

from types import SimpleNamespace

import torch

from study.protocol.trial_data import TrialData, trial_data

# --- what a trial may see -------------------------------------------------------------------------------------------


SEEN = torch.tensor([True, True, False, False])
LABELS = torch.tensor([0, 0, 0, 1, 2, 2])


def test_relatives_never_share_a_fold(data: TrialData) -> None:
    """Classes 2i and 2i + 1 are relatives; where both are seen they must lie in different folds."""
    fold = data.fold_C.tolist()
    assert sorted(f for f in fold if f >= 0) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for c in (0, 4, 8):
        assert fold[c] != fold[c + 1]


def test_a_fifth_of_every_class_is_held_out_without_a_validation_split(data: TrialData) -> None:
    held_out = torch.bincount(data.source_labels_I[data.held_out_I], minlength=12)
    assert held_out.tolist() == [0 if c in (2, 7, 11) else 2 for c in range(12)]


def test_a_validation_split_is_used_where_there_is_one(features: SimpleNamespace) -> None:
    features.source.split_I[5::10] = 1
    data = trial_data(features, rotation=0, folds=3, seed=0)
    assert torch.nonzero(data.held_out_I).flatten().tolist() == [5 + 10 * i for i in range(9)]
