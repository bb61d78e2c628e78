"""Metrics of the final test, by hand."""

import numpy as np
import pytest
import torch

from study.evaluation.metrics import evaluate, paired_bootstrap, resampled_h

# --- what a trial may see -------------------------------------------------------------------------------------------


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


def test_resamples_of_two_rows_are_paired_and_give_the_interval_of_the_pair() -> None:
    g = torch.Generator().manual_seed(0)
    labels_T = torch.randint(4, (400,), generator=g)
    wrong = torch.rand(2, 400, generator=g) < torch.tensor([[0.3], [0.5]])
    a_1T, b_1T = torch.where(wrong, (labels_T + 1) % 4, labels_T).split(1)
    a, b = (resampled_h([(rows, SEEN), (rows, ~SEEN)], labels_T, samples=2000) for rows in (a_1T, b_1T))
    gain, low, high = paired_bootstrap([(a_1T, b_1T, SEEN), (a_1T, b_1T, ~SEEN)], labels_T)
    assert a.shape == (2001,) and float(a[0] - b[0]) == pytest.approx(gain, abs=1e-6)
    found = np.quantile((a - b)[1:].numpy(), [0.025, 0.975])
    assert found == pytest.approx([low, high], abs=0.012)
    assert torch.equal(a, resampled_h([(a_1T, SEEN), (a_1T, ~SEEN)], labels_T, samples=2000))
