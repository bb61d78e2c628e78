from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from study.protocol.trial_data import TrialData, oracle_data, trial_data

# --- what a trial may see -------------------------------------------------------------------------------------------


def test_trials_get_no_unseen_image_and_no_target_label(features: SimpleNamespace, data: TrialData) -> None:
    unseen = {2, 7, 11}
    assert not unseen & set(data.source_labels_I.tolist())
    assert len(data.source_features_ID) == (12 - 3) * 10
    assert not unseen & set(torch.nonzero(data.fold_C >= 0).flatten().tolist())
    assert data.oracle_labels_T is None
    # every tensor is accounted for: none of them is as long as the target and made of class ids
    per_target_image = {f.name for f in fields(data) if len(getattr(getattr(data, f.name), "shape", ())) and
                        getattr(data, f.name).shape[0] == len(features.target_labels)}  # fmt: skip
    assert per_target_image == {"target_features_TD"}


def test_unseen_source_images_may_be_anything(features: SimpleNamespace, data: TrialData) -> None:
    noisy = features
    unseen = torch.isin(noisy.source_labels_I, torch.tensor([2, 7, 11]))
    noisy.source.features_ID = torch.where(unseen[:, None], torch.nan, noisy.source.features_ID)
    noisy.target_labels = None
    again = trial_data(noisy, rotation=0, folds=3, seed=0, clip_path=data.clip_path)
    for f in fields(data):
        a, b = getattr(data, f.name), getattr(again, f.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, f.name


def test_arrays_round_trip(data: TrialData) -> None:
    again = TrialData.from_arrays(data.to_arrays())
    for f in fields(data):
        a, b = getattr(data, f.name), getattr(again, f.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize(
    ("rotation", "folds", "message"),
    [
        (2, 3, "rotation must be 0 to 1 or all for toy, got 2"),
        (0, 5, "folds .* got 5 for 9"),
        (0, 1, "folds must be at least 2"),
    ],
)
def test_bad_requests(features: SimpleNamespace, rotation: int, folds: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trial_data(features, rotation=rotation, folds=folds, seed=0)


def test_the_oracle_is_a_field_of_its_own(features: SimpleNamespace, data: TrialData) -> None:
    assert torch.equal(oracle_data(data, features.target_labels).oracle_labels_T, features.target_labels)


# --- metrics --------------------------------------------------------------------------------------------------------

SEEN = torch.tensor([True, True, False, False])
LABELS = torch.tensor([0, 0, 0, 1, 2, 2])


def test_replace_keeps_trial_data_frozen(data: TrialData) -> None:
    with pytest.raises(AttributeError):
        data.logit_scale = 1.0  # type: ignore[misc]
    assert replace(data, logit_scale=1.0).logit_scale == 1.0
