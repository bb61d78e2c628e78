"""The sweeps against brute force: every threshold tried, every cosine and every logit formed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.sweeps import (
    Curve,
    ResidualCosine,
    ResidualFold,
    best_of_mean,
    class_mean_weights,
    class_places,
    lead_of_seen,
    seen_unseen_curve,
    sum_by_class,
    sweep_residual,
    tip_adapter_grid,
)

CASES = settings(max_examples=100, deadline=None, derandomize=True)


def accuracies(predicted_I: Tensor, labels_I: Tensor, base_C: Tensor) -> tuple[float, float, float]:
    """S, U and H, class by class."""
    sides = []
    for side_C in (base_C, ~base_C):
        per_class = [
            (predicted_I[labels_I == c] == c).double().mean().item()
            for c in side_C.nonzero().flatten().tolist()
            if (labels_I == c).any()
        ]
        sides.append(sum(per_class) / len(per_class) if per_class else 0.0)
    s, u = sides
    return s, u, 2 * s * u / (s + u) if s + u else 0.0


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores with many ties, logits, labels and base classes; also one image, one class a side, one side unlabelled."""
    classes, images = draw(st.integers(2, 6)), draw(st.integers(1, 25))
    base = draw(st.integers(1, classes - 1))
    levels = draw(st.sampled_from([1, 2, 4, 1000]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    labels_I = torch.randint(*draw(st.sampled_from([(0, classes), (0, base), (base, classes)])), (images,), generator=g)
    score_I = torch.randint(0, levels, (images,), generator=g) / levels
    logits_IC = torch.randint(0, max(levels, 3), (images, classes), generator=g) / 4
    logits_IC[torch.arange(images), labels_I] += 0.5
    return score_I, logits_IC, labels_I, torch.arange(classes) < base


def separated(score_I: Tensor, tau: float, base_I: Tensor, novel_I: Tensor) -> Tensor:
    return torch.where(score_I >= tau, base_I, novel_I)


@CASES
@given(problems())
def test_threshold_is_the_best_of_all(problem: tuple[Tensor, ...]) -> None:
    score_I, logits_IC, labels_I, base_C = problem
    base_I = logits_IC.masked_fill(~base_C, -math.inf).argmax(-1)
    novel_I = logits_IC.masked_fill(base_C, -math.inf).argmax(-1)
    curve = seen_unseen_curve(score_I, base_I == labels_I, novel_I == labels_I, labels_I, base_C)
    tried = sorted({*score_I.tolist(), math.inf}, reverse=True)
    brute = [accuracies(separated(score_I, tau, base_I, novel_I), labels_I, base_C) for tau in tried]
    assert curve.tau_M.tolist() == tried
    for got_M, column in ((curve.seen_M, 0), (curve.unseen_M, 1), (curve.h_M, 2)):
        assert got_M.tolist() == pytest.approx([b[column] for b in brute], abs=1e-12)
    best = curve.best()
    assert best.h == pytest.approx(max(b[2] for b in brute), abs=1e-12)
    chosen = accuracies(separated(score_I, best.tau, base_I, novel_I), labels_I, base_C)
    assert (best.seen, best.unseen, best.h) == pytest.approx(chosen, abs=1e-12)
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(brute, brute[1:], strict=False))
    assert curve.ausuc == pytest.approx(area, abs=1e-12)


@CASES
@given(problems())
def test_calibration_is_the_best_of_all_constants(problem: tuple[Tensor, ...]) -> None:
    _, logits_IC, labels_I, base_C = problem  # quarters: differences of logits are exact
    (lead_I,), (base_I,), (novel_I,) = lead_of_seen(logits_IC[None], base_C[None])
    best = seen_unseen_curve(lead_I, base_I == labels_I, novel_I == labels_I, labels_I, base_C).best()

    def stacked(constant: float) -> tuple[float, float, float]:
        return accuracies((logits_IC - constant * base_C).argmax(-1), labels_I, base_C)  # ties go to base classes

    side_logits = (logits_IC.masked_fill(~side, -math.inf).amax(1) for side in (base_C, ~base_C))
    margins = torch.sub(*side_logits).tolist()
    assert best.h == pytest.approx(max(stacked(c)[2] for c in [*margins, 1e4]), abs=1e-12)
    assert (best.seen, best.unseen, best.h) == pytest.approx(stacked(min(max(best.tau, -1e4), 1e4)), abs=1e-12)


def test_lead_of_seen_by_hand() -> None:
    logits = torch.tensor([[[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 4.0]]])
    lead, seen, unseen = lead_of_seen(logits, torch.tensor([[True, True, False, False]]))
    assert (lead.tolist(), seen.tolist(), unseen.tolist()) == ([[1.0, -3.0]], [[0, 1]], [[2, 3]])


def test_threshold_lies_in_the_middle_of_equals() -> None:
    labels_I = torch.tensor([0, 0, 1, 1])
    score_I = torch.tensor([0.9, 0.8, 0.4, 0.1])
    right = torch.ones(4, dtype=torch.bool)
    best = seen_unseen_curve(score_I, right, right, labels_I, torch.tensor([True, False])).best()
    assert (best.tau, best.h) == (pytest.approx(0.6), 1.0)


def test_scores_must_be_numbers() -> None:
    with pytest.raises(ValueError, match="must be finite, got 1"):
        two = torch.tensor([True, False])
        seen_unseen_curve(torch.tensor([0.1, math.nan]), two, two, torch.tensor([0, 1]), two)


def test_classes_without_images_do_not_count() -> None:
    seen_I, unseen_I = class_mean_weights(torch.tensor([0, 0, 2]), torch.tensor([True, True, False]))
    assert seen_I.tolist() == [0.5, 0.5, 0.0]
    assert unseen_I.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("strength", [0.0, 0.3, 7.0, math.inf])
def test_residual_cosine_is_the_cosine_of_the_sum(strength: float) -> None:
    g = torch.Generator().manual_seed(0)
    f_a, f_c = torch.randn(2, 2, 7, 5, generator=g)
    t_a, t_c = torch.randn(2, 2, 3, 5, generator=g)
    cosine = ResidualCosine(f_a, f_c, t_a, t_c)
    if strength == math.inf:
        f_a, t_a, weight = 0 * f_a, 0 * t_a, 1.0
    else:
        weight = strength
    expected = torch.cosine_similarity((f_a + weight * f_c)[:, :, None], (t_a + weight * t_c)[:, None], dim=-1)
    torch.testing.assert_close(cosine.at(strength), expected)
    torch.testing.assert_close(cosine.at(torch.tensor([strength, strength])), expected)
    torch.testing.assert_close(cosine.lane(1).at(strength), expected[1])


@pytest.mark.parametrize("separated", [True, False])
def test_best_lambda_and_tau_of_a_grid(separated: bool) -> None:
    g = torch.Generator().manual_seed(1)
    images, classes = 60, 6
    features = [torch.randn(n, 4, generator=g) for n in (images, images, classes, classes)]
    labels_I, base_C = torch.randint(0, classes, (images,), generator=g), torch.arange(classes) < 4
    score_I, base_I = torch.randn(images, generator=g), torch.randint(0, 4, (images,), generator=g)
    lambdas = (0.0, 0.5, 2.0, math.inf)
    cosine = ResidualCosine(*features)
    fold = ResidualFold(
        cosine=cosine,
        score_I=score_I if separated else None,
        base_best_I=base_I,
        labels_I=labels_I,
        base_C=base_C,
    )
    (best,), mean = sweep_residual([fold], lambdas=lambdas)
    assert (mean.h, mean.residual_lambda) == (best.h, best.residual_lambda)
    tried = {}
    for strength in lambdas:
        cosine_IC = cosine.at(strength)
        if not separated:
            tried[strength] = accuracies(cosine_IC.argmax(-1), labels_I, base_C)[2]
            continue
        novel_I = cosine_IC.masked_fill(base_C, -math.inf).argmax(-1)
        tried[strength] = max(
            accuracies(torch.where(score_I >= tau, base_I, novel_I), labels_I, base_C)[2]
            for tau in [*score_I.tolist(), math.inf]
        )
    assert best.h == pytest.approx(max(tried.values()), abs=1e-12)
    assert tried[best.residual_lambda] == pytest.approx(best.h, abs=1e-12)
    assert math.isnan(best.tau) != separated


@pytest.mark.parametrize("separated", [True, False])
def test_lambda_and_tau_of_several_folds_are_one_point_with_the_best_mean(separated: bool) -> None:
    g = torch.Generator().manual_seed(2)
    classes, lambdas, folds = 6, (0.0, 0.5, 2.0, math.inf), []
    for base, images in ((4, 40), (3, 30), (2, 50)):
        features = [torch.randn(n, 4, generator=g) for n in (images, images, classes, classes)]
        folds.append(
            ResidualFold(
                cosine=ResidualCosine(*features),
                score_I=torch.randn(images, generator=g) if separated else None,
                base_best_I=torch.randint(0, base, (images,), generator=g),
                labels_I=torch.randint(0, classes, (images,), generator=g),
                base_C=torch.arange(classes) < base,
            )
        )

    def h(fold: ResidualFold, strength: float, tau: float) -> float:
        cosine_IC = fold.cosine.at(strength)
        if fold.score_I is None:
            return accuracies(cosine_IC.argmax(-1), fold.labels_I, fold.base_C)[2]
        novel_I = cosine_IC.masked_fill(fold.base_C, -math.inf).argmax(-1)
        predicted_I = torch.where(fold.score_I >= tau, fold.base_best_I, novel_I)
        return accuracies(predicted_I, fold.labels_I, fold.base_C)[2]

    taus = [math.inf, *(t for fold in folds if fold.score_I is not None for t in fold.score_I.tolist())]
    best = max(sum(h(fold, x, tau) for fold in folds) / 3 for x in lambdas for tau in taus)
    own, mean = sweep_residual(folds, lambdas=lambdas)
    assert mean.h == pytest.approx(best, abs=1e-12)
    at_choice = sum(h(fold, mean.residual_lambda, mean.tau) for fold in folds) / 3
    assert at_choice == pytest.approx(best, abs=1e-12)
    for fold, choice in zip(folds, own, strict=True):
        (alone,), _ = sweep_residual([fold], lambdas=lambdas)
        assert (choice.h, choice.residual_lambda) == (alone.h, alone.residual_lambda)


def test_the_best_of_a_mean_is_no_mean_of_bests() -> None:
    """Two folds whose best thresholds fail each other, and the one that is best for both together."""

    def curve(*steps: tuple[float, float]) -> Curve:
        taus, h = zip((math.inf, 0.0), *steps, strict=True)
        return Curve(
            tau_M=torch.tensor(taus).double(), seen_M=torch.tensor(h).double(), unseen_M=torch.tensor(h).double()
        )

    curves = [curve((0.9, 0.6), (0.3, 0.5), (0.2, 0.0)), curve((0.4, 0.1), (0.35, 0.5), (0.1, 0.7))]
    choice = best_of_mean(curves)
    assert (choice.tau, choice.h) == (pytest.approx(0.325), pytest.approx(0.55))
    assert [(c.best().tau, c.best().h) for c in curves] == [
        (pytest.approx(0.6), pytest.approx(0.6)),
        (-math.inf, pytest.approx(0.7)),
    ]


@CASES
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_weights_are_summed_by_class_as_a_product_with_one_hot_labels(seed: int, classes: int) -> None:
    g = torch.Generator().manual_seed(seed)
    near_BN = torch.randn(4, 9, generator=g)
    labels_N = torch.randint(-1, classes, (9,), generator=g)  # -1: no image
    one_hot_NC = (labels_N[:, None] == torch.arange(classes)).float()
    torch.testing.assert_close(sum_by_class(near_BN, class_places(labels_N, classes)), near_BN @ one_hot_NC)


@CASES
@given(st.integers(0, 2**31), st.integers(2, 6), st.sampled_from([1, 3, 1000]), st.booleans())
def test_tip_adapter_grid_is_the_double_loop(seed: int, classes: int, levels: int, harmonic: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    images, cached = 20, 9
    clip_IC = torch.randint(0, 2 * levels, (images, classes), generator=g) / levels  # few levels: many ties
    affinity_IN = torch.randint(0, levels + 1, (images, cached), generator=g) / levels
    cache_labels_N = torch.randint(0, classes, (cached,), generator=g)
    labels_I, base_C = torch.randint(0, classes, (images,), generator=g), torch.arange(classes) < classes // 2
    alphas, betas = [0.0, 0.25, 0.5, 1.0, 3.0], [0.0, 1.0, 5.5]
    grid_BA = tip_adapter_grid(
        zip(clip_IC.split(7), affinity_IN.split(7), strict=True),
        cache_labels_N=cache_labels_N,
        labels_I=labels_I,
        alphas=alphas,
        betas=betas,
        base_C=base_C if harmonic else None,
    )
    for b, beta in enumerate(betas):
        for a, alpha in enumerate(alphas):
            cache_IC = sum_by_class(torch.exp(beta * (affinity_IN - 1)), class_places(cache_labels_N, classes))
            predicted_I = (clip_IC + alpha * cache_IC).argmax(-1)
            micro = (predicted_I == labels_I).double().mean().item()
            expected = accuracies(predicted_I, labels_I, base_C)[2] if harmonic else micro
            assert grid_BA[b, a].item() == pytest.approx(expected, abs=1e-12)
