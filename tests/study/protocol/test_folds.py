"""Folds of seen classes, and held-out images."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from study.protocol.folds import class_folds
from study.protocol.trial_data import TrialData, trainable_images, trial_data

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


def few_shots(features: SimpleNamespace, shots: int) -> SimpleNamespace:
    chosen_I = torch.arange(len(features.source_labels_I)) % 10 < shots
    features.source_labels_I = features.source_labels_I[chosen_I]
    features.source.features_ID, features.source.split_I = (
        t[chosen_I] for t in (features.source.features_ID, features.source.split_I)
    )
    return features


@pytest.mark.parametrize("shots", [2, 3])
def test_of_two_images_one_is_held_out_so_that_seen_accuracy_is_measured(features: SimpleNamespace, shots: int) -> None:
    data = trial_data(few_shots(features, shots), rotation=0, folds=3, seed=0)
    assert torch.bincount(data.source_labels_I[data.held_out_I], minlength=12)[data.seen_C].tolist() == [1] * 9


def test_one_image_of_each_class_is_refused_in_one_line(features: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="must have two labelled images of some seen classes.*got 0 such images of 9"):
        trial_data(few_shots(features, 1), rotation=0, folds=3, seed=0)


def test_refits_of_base_to_novel_leave_the_validation_shots_alone(features: SimpleNamespace) -> None:
    features.source.split_I[5::10] = 1
    assert trainable_images(trial_data(features, rotation=0, folds=3, seed=0), None).all()
    features.halves = True
    data = trial_data(features, rotation=0, folds=3, seed=0)
    assert torch.equal(trainable_images(data, None), ~data.held_out_I) and data.held_out_I.sum() == 9


def test_outside_wordnet_classes_with_similar_texts_never_share_a_fold(features: SimpleNamespace) -> None:
    outside = torch.eye(12)
    shared = torch.nn.functional.normalize(torch.randn(6, 192, generator=torch.Generator().manual_seed(0)), dim=-1)
    near = shared.repeat_interleave(2, dim=0) + 0.01 * torch.randn(12, 192, generator=torch.Generator().manual_seed(1))
    graph = SimpleNamespace(**{**vars(features.graph), "path_similarity_CC": outside})
    changed: Any = SimpleNamespace(**{**vars(features), "graph": graph, "name_features_CPD": near[:, None]})
    for seed in range(5):
        fold_C = class_folds(changed, torch.ones(12, dtype=torch.bool), folds=3, seed=seed)
        assert (fold_C[0::2] != fold_C[1::2]).all() and fold_C.bincount().tolist() == [4, 4, 4]
