from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from study.evaluation.metrics import evaluate, paired_bootstrap
from study.protocol.scores import class_accuracy
from study.protocol.task import within_halves
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


def test_arrays_round_trip(data: TrialData) -> None:
    again = TrialData.from_arrays(data.to_arrays())
    for f in fields(data):
        a, b = getattr(data, f.name), getattr(again, f.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize(
    ("rotation", "folds", "message"),
    [(2, 3, "--rotation must be 0 to 1 or all for toy, got 2"), (0, 5, "--folds .* got 5 for 9"), (0, 1, "--folds")],
)
def test_bad_requests(features: SimpleNamespace, rotation: int, folds: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trial_data(features, rotation=rotation, folds=folds, seed=0)


def test_the_oracle_is_a_field_of_its_own(features: SimpleNamespace, data: TrialData) -> None:
    assert torch.equal(oracle_data(data, features.target_labels).oracle_labels_T, features.target_labels)


# --- metrics --------------------------------------------------------------------------------------------------------

SEEN = torch.tensor([True, True, False, False])
LABELS = torch.tensor([0, 0, 0, 1, 2, 2])


def test_micro_and_mean_per_class_accuracy_differ_as_they_should() -> None:
    (metrics,) = evaluate(torch.tensor([[0, 0, 3, 0, 2, 1]]), LABELS, SEEN)
    assert metrics == pytest.approx(
        {
            "test_known_micro": 2 / 4,
            "test_unknown_micro": 1 / 2,
            "test_all_micro": 3 / 6,
            "test_seen_mean": (2 / 3 + 0) / 2,
            "test_unseen_mean": 1 / 2,  # class 3 has no image: it is in no mean
            "test_h": 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2),
        }
    )


def test_h_of_nothing_right_is_zero() -> None:
    (metrics,) = evaluate(torch.tensor([[3, 3, 3, 3, 3, 3]]), LABELS, SEEN)
    assert metrics["test_h"] == 0.0


def test_class_accuracy_is_nan_without_images() -> None:
    accuracy = class_accuracy(LABELS[None], LABELS, 4)
    assert accuracy[0, :3].tolist() == [1, 1, 1] and accuracy[0, 3].isnan()


def test_bootstrap_of_a_method_that_is_the_baseline_is_exactly_zero() -> None:
    baseline = torch.tensor([0, 1, 0, 1, 2, 1])
    assert paired_bootstrap([(baseline.repeat(3, 1), baseline[None], SEEN)], LABELS, samples=50) == (0.0, 0.0, 0.0)


def test_bootstrap_reports_the_observed_gain_inside_its_interval() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(50)
    wrong = torch.rand(3, 200, generator=g)
    method = torch.where(wrong < 0.3, 3 - labels, labels)
    baseline = torch.where(torch.rand(200, generator=g) < 0.5, 3 - labels, labels)
    observed = np.mean([m["test_h"] for m in evaluate(method, labels, SEEN)])
    observed -= evaluate(baseline[None], labels, SEEN)[0]["test_h"]
    gain, low, high = paired_bootstrap([(method, baseline[None], SEEN)], labels, samples=500)
    assert gain == pytest.approx(observed, abs=1e-6)
    assert low < gain < high and 0.08 < high - low < 0.25  # two binomials of 200 images: 4 sigma is about 0.15
    assert (gain, low, high) == paired_bootstrap([(method, baseline[None], SEEN)], labels, samples=500)


def test_bootstrap_averages_over_rotations() -> None:
    labels, right = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 3])
    half = torch.tensor([0, 3, 2, 1])  # S = U = H = 1/2 however the seen classes are paired with unseen ones
    other = torch.tensor([True, False, False, True])
    gain, _, _ = paired_bootstrap(
        [(right[None], half[None], SEEN), (half[None], half[None], other)], labels, samples=10
    )
    assert gain == pytest.approx((0.5 + 0.0) / 2)


def test_replace_keeps_trial_data_frozen(data: TrialData) -> None:
    with pytest.raises(AttributeError):
        data.logit_scale = 1.0  # type: ignore[misc]
    assert replace(data, logit_scale=1.0).logit_scale == 1.0


def test_an_image_is_classified_within_its_own_half() -> None:
    logits = torch.tensor([[5.0, 1.0, 2.0, 3.0], [5.0, 1.0, 2.0, 3.0]])  # two images, four classes
    seen_KC = torch.tensor([[True, True, False, False], [False, True, True, False]])

    def classify(among_KC: torch.Tensor) -> torch.Tensor:
        return torch.stack([logits.masked_fill(~among_C, -torch.inf).argmax(-1) for among_C in among_KC])

    assert within_halves(classify, torch.tensor([1, 3]), seen_KC).tolist() == [[0, 3], [2, 0]]
