"""Exact sweeps of inference-time knobs: one trained model, every value of the knob, no retraining and no sampling.

Threshold tau, or a constant subtracted from seen logits (Chao et al., 2016): image i is classified among base classes
if score_i >= tau. With the images sorted by score, S(tau) is a cumulative sum of 1 / (classes x images of the class)
over images whose best base class is right, and U(tau) such a sum from the other end: one sort scores every tau.

Residual strength lambda, for features f = f_a + lambda f_c of an image and t = t_a + lambda t_c of a class:

    f t   = f_a t_a + lambda (f_a t_c + f_c t_a) + lambda^2 f_c t_c
    |f|^2 = |f_a|^2 + 2 lambda f_a f_c + lambda^2 |f_c|^2

so the cosines at every lambda come from four matrix products.

Tip-Adapter (Zhang et al., 2022): logits(alpha, beta) = CLIP's + alpha cache(beta) are linear in alpha, so the alphas
at which an image is classified correctly are one interval: one product per beta and none per alpha.

A configuration is swept on several folds at once, a model each. Its knobs are one point for all of them: the largest
mean H over the folds. Knobs that act together are chosen together; medians of each alone would be a point that nobody
scored (Tip-Adapter: 32.88 with medians of alpha and beta, 33.57 with the best mean).

H = 2 S U / (S + U), with S and U the mean per-class accuracies over base and novel classes.

Suffixes: I images, C classes, D CLIP dimension, M thresholds or cached classes, G grid of residual strengths, A alphas,
B betas, N cached images, R rivals of the label, F folds.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

LAMBDAS = (0.0, *(round(2 ** (i / 4), 4) for i in range(-16, 21)), math.inf)
"""Residual strengths swept by default: none, 1/16 to 32 in quarter octaves, and CLIP alone."""


# --- thresholds -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The best point of a sweep."""

    tau: float
    """Images that score at least this are base-like; halfway between the scores that bound it, +-inf at the ends."""
    seen: float
    """S, mean per-class accuracy over base classes."""
    unseen: float
    """U, mean per-class accuracy over novel classes."""
    h: float
    """H, the harmonic mean of S and U."""
    residual_lambda: float = math.nan
    """The best residual strength, where one was swept."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep found for a group of lanes: one configuration on its folds."""

    h: tuple[float, ...]
    """Best H of each lane, with knobs of its own: what the sweep has set."""
    knobs: Mapping[str, float]
    """Knobs with the best mean H over the lanes: what a model trained on all classes takes."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Seen against unseen accuracy at every threshold, from "nothing is base-like" to "everything is"."""

    tau_M: Tensor
    """Smallest score that counts as base-like, descending, +inf first."""
    seen_M: Tensor
    """S at each threshold, float64; rises."""
    unseen_M: Tensor
    """U at each threshold, float64; falls."""

    @property
    def ausuc(self) -> float:
        """Area under the seen-unseen curve (Chao et al., 2016), trapezoids."""
        return float(torch.trapezoid(self.unseen_M, self.seen_M))

    @property
    def h_M(self) -> Tensor:
        """H at each threshold."""
        return harmonic_mean(self.seen_M, self.unseen_M)

    def best(self) -> Choice:
        """Return the threshold with the largest H; of equals that with the largest S + U, then the strictest.

        Any tau between two neighbouring scores does the same to these images, and so may a whole run of them: the
        middle of the run is the choice that other images are least likely to fall on the wrong side of.
        """
        return best_of_mean([self])


def best_of_mean(curves: Sequence[Curve]) -> Choice:
    """Return the threshold with the best mean H over the curves of several folds, exactly.

    H of a curve is a step function of the threshold, so the mean of several steps only where one of them does: all
    thresholds of all curves are tried on every curve. S, U and H of the choice are means over the curves, and the rules
    for equals are those of `Curve.best`.
    """
    tau_M = torch.cat([c.tau_M for c in curves]).unique().flip(0)
    # entry m of a curve holds for thresholds above the next smaller score of its images
    at_FM = [torch.searchsorted(-c.tau_M, -tau_M, right=True) - 1 for c in curves]
    seen_FM = torch.stack([c.seen_M[at_M] for c, at_M in zip(curves, at_FM, strict=True)])
    unseen_FM = torch.stack([c.unseen_M[at_M] for c, at_M in zip(curves, at_FM, strict=True)])
    h_M = harmonic_mean(seen_FM, unseen_FM).mean(0)
    start = int((seen_FM + unseen_FM).sum(0).masked_fill(h_M < h_M.max(), -1).argmax())
    same = ((seen_FM == seen_FM[:, start, None]) & (unseen_FM == unseen_FM[:, start, None])).all(0)
    stop = start + int(same[start:].int().cumprod(0).sum())  # one past the run
    low = float(tau_M[stop]) if stop < len(tau_M) else -math.inf
    return Choice(
        tau=_between(low, float(tau_M[start])),
        seen=float(seen_FM[:, start].mean()),
        unseen=float(unseen_FM[:, start].mean()),
        h=float(h_M[start]),
    )


def class_mean_weights(labels_I: Tensor, base_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (I,) float64 whose sum over correct images is S, and weights whose sum is U.

    Classes without an image do not count; a side without any image has accuracy 0.
    """
    count_C = torch.bincount(labels_I, minlength=len(base_C))
    sides = []
    for side_C in (base_C, ~base_C):
        classes = ((count_C > 0) & side_C).sum()
        sides.append(side_C[labels_I].double() / (count_C[labels_I] * classes).clamp_min(1))
    return sides[0], sides[1]


def seen_unseen_curve(
    score_I: Tensor, base_correct_I: Tensor, novel_correct_I: Tensor, labels_I: Tensor, base_C: Tensor
) -> Curve:
    """Score every threshold on `score_I`; images with a score of at least tau are classified among base classes.

    `base_correct_I`, `novel_correct_I`: bool, whether the label is the best of the base or of the novel classes.
    `base_C`: bool. Images with equal scores pass together. Raises `ValueError` on scores that are not finite.
    """
    if not torch.isfinite(score_I).all():
        raise ValueError(f"separation scores must be finite, got {int((~torch.isfinite(score_I)).sum())} that are not")
    seen_I, unseen_I = class_mean_weights(labels_I, base_C)
    order = score_I.argsort(descending=True)
    score_I = score_I[order]
    ends_M = torch.cat([score_I[1:] != score_I[:-1], score_I.new_ones(1, dtype=torch.bool)]).nonzero().flatten()
    gained_I = (seen_I * base_correct_I)[order].cumsum(0)
    kept_I = (unseen_I * novel_correct_I)[order].flip(0).cumsum(0).flip(0)  # from the end, so that it ends at exactly 0
    zero = gained_I.new_zeros(1)
    return Curve(
        tau_M=torch.cat([score_I.new_full((1,), math.inf), score_I[ends_M]]).double(),
        seen_M=torch.cat([zero, gained_I[ends_M]]),
        unseen_M=torch.cat([kept_I, zero])[torch.cat([ends_M.new_zeros(1), ends_M + 1])],
    )


def lead_of_seen(logits_KIC: Tensor, seen_KC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lead of the best seen class's logit over the best unseen one's, and both classes, (K, I) each."""
    seen, seen_KI = logits_KIC.masked_fill(~seen_KC[:, None], -math.inf).max(-1)
    unseen, unseen_KI = logits_KIC.masked_fill(seen_KC[:, None], -math.inf).max(-1)
    return seen - unseen, seen_KI, unseen_KI


# --- residual strength ----------------------------------------------------------------------------------------------


class ResidualCosine:
    """cos(f_a + lambda f_c, t_a + lambda t_c) for any lambda, from four matrix products.

    Images (..., I, D) and class texts (..., C, D): `a` from the adapter, `c` from CLIP.
    """

    def __init__(self, f_a: Tensor, f_c: Tensor, t_a: Tensor, t_c: Tensor) -> None:
        self.products = (f_a @ t_a.mT, f_a @ t_c.mT + f_c @ t_a.mT, f_c @ t_c.mT)
        self.image_norms, self.text_norms = _square_norms(f_a, f_c), _square_norms(t_a, t_c)

    def lane(self, k: int, images: Tensor | slice = slice(None)) -> "ResidualCosine":
        """Return one lane's cosines (I, C) of stacked ones, for all or some of the images."""
        one = object.__new__(ResidualCosine)
        one.products = _lane(self.products, k, images)
        one.image_norms, one.text_norms = _lane(self.image_norms, k, images), _lane(self.text_norms, k)
        return one

    def among(self, classes_M: Tensor) -> "ResidualCosine":
        """Return one lane's cosines (I, M) with some classes (ids)."""
        some = object.__new__(ResidualCosine)
        aa, ac, cc = (product[:, classes_M] for product in self.products)
        some.products, some.image_norms = (aa, ac, cc), self.image_norms
        aa, ac, cc = (norm[classes_M] for norm in self.text_norms)
        some.text_norms = (aa, ac, cc)
        return some

    def at(self, strength: float | Tensor) -> Tensor:
        """Compute cosines (..., I, C); `strength` is one lambda or one per lane (K,), 0 to inf."""
        strength = torch.as_tensor(strength, dtype=torch.float32, device=self.products[0].device)
        # both features scaled by 1 / (1 + lambda): the same cosine, and finite for an infinite lambda
        adapter = (1 / (1 + strength)).reshape(-1, 1, 1) if strength.dim() else 1 / (1 + strength)
        clip = 1 - adapter

        def mix(aa: Tensor, ac: Tensor, cc: Tensor) -> Tensor:
            return adapter**2 * aa + adapter * clip * ac + clip**2 * cc

        image, text = (mix(*n).clamp_min(1e-12).sqrt() for n in (self.image_norms, self.text_norms))
        return mix(*self.products) / (image * text.mT)


@dataclass(frozen=True, kw_only=True, eq=False)  # tensors have no single truth value
class ResidualFold:
    """One fold's model and its labelled images, for a sweep of tau and lambda together."""

    cosine: ResidualCosine
    """Cosines of the images with all classes in the novel branch, as a function of lambda; of one lane."""
    score_I: Tensor | None
    """Separation scores; None without separation: then all classes compete in `cosine`."""
    base_best_I: Tensor
    """Best base class by the latent classifier."""
    labels_I: Tensor
    """Class ids."""
    base_C: Tensor
    """Bool: classes whose images count for S."""

    def curve(self, strength: float) -> Curve:
        """Return S and U at every threshold, at one residual strength; without separation a curve of one point."""
        if self.score_I is None:
            return self._point(self.cosine.at(strength).argmax(-1))
        novel_N, cosine = self._novel
        novel_I = novel_N[cosine.at(strength).argmax(-1)] if len(novel_N) else torch.full_like(self.labels_I, -1)
        base_right_I, novel_right_I = self.base_best_I == self.labels_I, novel_I == self.labels_I
        return seen_unseen_curve(self.score_I, base_right_I, novel_right_I, self.labels_I, self.base_C)

    def apart(self, strength: float) -> Curve:
        """Return S and U where only classes of the label's own kind compete: a curve of one point."""
        is_base_I = self.base_C[self.labels_I]
        others_IC = self.base_C != is_base_I[:, None]
        best_I = self.cosine.at(strength).masked_fill(others_IC, -math.inf).argmax(-1)
        return self._point(best_I if self.score_I is None else torch.where(is_base_I, self.base_best_I, best_I))

    def _point(self, predicted_I: Tensor) -> Curve:
        correct_I = (predicted_I == self.labels_I).double()
        seen, unseen = (w @ correct_I for w in class_mean_weights(self.labels_I, self.base_C))
        return Curve(tau_M=seen.new_full((1,), math.inf), seen_M=seen[None], unseen_M=unseen[None])

    @cached_property
    def _novel(self) -> tuple[Tensor, ResidualCosine]:
        """Novel classes (ids), and the cosines with them alone: base classes compete elsewhere."""
        novel_N = (~self.base_C).nonzero().flatten()
        return novel_N, self.cosine.among(novel_N)


def sweep_residual(
    folds: Sequence[ResidualFold], *, lambdas: Sequence[float] = LAMBDAS, apart: bool = False
) -> tuple[list[Choice], Choice]:
    """Return each fold's best residual strength with its exact best threshold, and the pair best for the folds' mean.

    tau and lambda belong together, so the second result is one point of the whole grid: the largest mean H over the
    folds, every threshold tried at every lambda. tau is NaN without separation. Of equal H the smaller lambda wins.
    `apart`: whether only base classes compete for images of base classes, and only novel ones for the others. lambda is
    then the best for that, and tau, which decides nothing there, the best at this lambda where all classes compete.
    """
    if not lambdas:
        raise ValueError("lambdas must name at least one residual strength, got none")
    best = [Choice(tau=math.nan, seen=0.0, unseen=0.0, h=-math.inf)] * (len(folds) + 1)  # the last one is of the mean
    for strength in lambdas:
        curves = [fold.apart(strength) if apart else fold.curve(strength) for fold in folds]
        for i, together in enumerate([*([curve] for curve in curves), curves]):
            choice = best_of_mean(together)
            if choice.h > best[i].h:
                best[i] = replace(choice, residual_lambda=float(strength))
    for i, some in enumerate([*([fold] for fold in folds), folds]):
        if folds[0].score_I is None:
            best[i] = replace(best[i], tau=math.nan)
        elif apart:
            together = [fold.curve(best[i].residual_lambda) for fold in some]
            best[i] = replace(best[i], tau=best_of_mean(together).tau)
    return best[:-1], best[-1]


# --- Tip-Adapter ----------------------------------------------------------------------------------------------------


def class_places(labels_N: Tensor, classes: int) -> Tensor:
    """Return where the images of each class are in a cache (C, S), counted from 1; 0 where a class has fewer than S.

    `labels_N`: class ids, -1 where there is no image.
    """
    order_N = labels_N.argsort(stable=True)
    ordered_N = labels_N[order_N]
    rank_N = torch.arange(len(labels_N), device=labels_N.device) - torch.searchsorted(ordered_N, ordered_N)
    held_N = ordered_N >= 0
    most = int(rank_N[held_N].max()) + 1 if held_N.any() else 1
    places_CS = labels_N.new_zeros(classes, most)
    places_CS[ordered_N[held_N], rank_N[held_N]] = order_N[held_N] + 1
    return places_CS


def sum_by_class(near_BN: Tensor, places_CS: Tensor) -> Tensor:
    """Sum the weights of cached images by class: (..., B, N) and (..., C, S) -> (..., B, C).

    A product with one-hot labels gives the same, with C times the operations and memory.
    """
    classes, shots = places_CS.shape[-2:]
    places = places_CS.flatten(-2)[..., None, :].expand(*near_BN.shape[:-1], -1)
    return F.pad(near_BN, (1, 0)).gather(-1, places).unflatten(-1, (classes, shots)).sum(-1)  # place 0: no image


def tip_adapter_grid(
    parts: Iterable[tuple[Tensor, Tensor]],
    *,
    cache_labels_N: Tensor,
    labels_I: Tensor,
    alphas: Sequence[float],
    betas: Sequence[float],
    base_C: Tensor | None = None,
    apart: bool = False,
) -> Tensor:
    """Compute the accuracy (B, A) float64 of Tip-Adapter at every beta and alpha; H instead where `base_C` is given.

    Logits are `clip + alpha sum_n exp(-beta (1 - affinity_n)) [label_n = c]` (Zhang et al., 2022). For one beta they
    are linear in alpha: two bounds per image replace one product per alpha. Where rounding could decide, the logits are
    formed and compared after all, so each count is that of a loop over the grid. Ties go to the smaller class, as in
    `argmax`. `apart`: whether only base classes compete for images of base classes, and only novel ones for the others.
    `parts`: CLIP's logits (I, C) and affinities with the cached images (I, N) of all images, some at a time: those of a
    large benchmark with a large cache would not fit.
    """
    if base_C is None:
        weights_SI = torch.full_like(labels_I, 1, dtype=torch.float64)[None] / len(labels_I)
    else:
        weights_SI = torch.stack(class_mean_weights(labels_I, base_C))
    cached_M, place_N = cache_labels_N.unique(return_inverse=True)
    places_MS = class_places(place_N, len(cached_M))
    sums_BSA, start = labels_I.new_zeros(len(betas), len(weights_SI), len(alphas), dtype=torch.float64), 0
    for clip_logits_IC, affinity_IN in parts:
        rows = slice(start, start + len(affinity_IN))
        others_C = None if base_C is None or not apart else base_C
        corrects = _tip_adapter_correct(
            clip_logits_IC, affinity_IN, cached_M, places_MS, labels_I[rows], alphas, betas, others_C
        )
        for b, correct_IA in enumerate(corrects):
            sums_BSA[b] += weights_SI[:, rows] @ correct_IA.double()
        start = rows.stop
    return sums_BSA[:, 0] if base_C is None else harmonic_mean(sums_BSA[:, 0], sums_BSA[:, 1])


def _tip_adapter_correct(
    clip_logits_IC: Tensor,
    affinity_IN: Tensor,
    cached_M: Tensor,
    places_MS: Tensor,
    labels_I: Tensor,
    alphas: Sequence[float],
    betas: Sequence[float],
    apart_C: Tensor | None,
) -> Iterator[Tensor]:
    """Yield whether each image is right at each alpha, bool (I, A), for one beta after the other.

    `apart_C`: base classes, where only classes of the label's own kind compete.
    """
    alpha_A = torch.tensor(alphas, dtype=clip_logits_IC.dtype, device=clip_logits_IC.device)
    # a class without a cached image keeps CLIP's logit: the best such rival, the last column, stands for all of them
    own_IM = labels_I[:, None] == cached_M
    own_I1 = clip_logits_IC.gather(1, labels_I[:, None])
    others_IC = clip_logits_IC.index_fill(1, cached_M, -math.inf).scatter_(1, labels_I[:, None], -math.inf)
    lead_IM = (own_I1 - clip_logits_IC[:, cached_M]).masked_fill_(own_IM, math.inf)  # no rival of itself
    outside_IC = torch.zeros_like(clip_logits_IC, dtype=torch.bool)  # classes that do not compete for the image
    if apart_C is not None:
        outside_IC = apart_C != apart_C[labels_I][:, None]
        lead_IM.masked_fill_(outside_IC[:, cached_M], math.inf)
        others_IC.masked_fill_(outside_IC, -math.inf)
    lead_IR = torch.cat([lead_IM, own_I1 - others_IC.amax(1, keepdim=True)], dim=1)
    for beta in betas:
        cache_IM = sum_by_class(torch.exp(beta * (affinity_IN - 1)), places_MS)
        own_I1 = (cache_IM * own_IM).sum(1, keepdim=True)
        slope_IR = torch.cat([own_I1 - cache_IM, own_I1], dim=1)
        reach = clip_logits_IC.abs().max() + alpha_A.abs().max() * cache_IM.abs().max()
        doubt = 16 * torch.finfo(reach.dtype).eps * reach  # of a difference of two logits, anywhere on the grid
        falling_IR, rising_IR = slope_IR < 0, slope_IR > 0
        correct_IA = _leads(lead_IR - doubt, slope_IR, falling_IR, rising_IR, alpha_A)
        doubtful = (_leads(lead_IR + doubt, slope_IR, falling_IR, rising_IR, alpha_A) & ~correct_IA).nonzero()
        for rows_P2 in doubtful.split(2**16):
            i, a = rows_P2.unbind(1)
            logits_PC = clip_logits_IC[i].index_add_(1, cached_M, alpha_A[a, None] * cache_IM[i])
            correct_IA[i, a] = logits_PC.masked_fill_(outside_IC[i], -math.inf).argmax(-1) == labels_I[i]
        yield correct_IA


def _leads(lead_IR: Tensor, slope_IR: Tensor, falling_IR: Tensor, rising_IR: Tensor, alpha_A: Tensor) -> Tensor:
    """Return bool (I, A): whether `lead + alpha slope > 0` against every rival; the slope's sign is given."""
    bound_IR = -lead_IR / slope_IR
    low_I = torch.where(rising_IR, bound_IR, -math.inf).amax(1)
    high_I = torch.where(falling_IR, bound_IR, math.inf).amin(1)
    level_I = torch.where(rising_IR | falling_IR, math.inf, lead_IR).amin(1)  # least lead that no alpha changes
    return (alpha_A > low_I[:, None]) & (alpha_A < high_I[:, None]) & (level_I > 0)[:, None]


# --- arithmetic -----------------------------------------------------------------------------------------------------


def harmonic_mean(a: Tensor, b: Tensor) -> Tensor:
    """Return 2ab / (a + b), 0 where both are 0."""
    return 2 * a * b / (a + b).clamp_min(1e-12)


def _between(low: float, high: float) -> float:
    """Return a threshold that `high` passes and `low` does not."""
    if math.isinf(low) or math.isinf(high):
        return high if math.isinf(high) else low
    middle = low + (high - low) / 2
    return middle if low < middle else high


def each_lane(count: int, groups: Sequence[Sequence[int]] | None) -> Sequence[Sequence[int]]:
    """Return the groups of lanes to sweep: by default each of `count` lanes alone."""
    return [[k] for k in range(count)] if groups is None else groups


def allowed_images(allowed_KI: Tensor | None, lane: int) -> Tensor | slice:
    """Return the images that a sweep may choose the lane's knobs by, as an index: all of them without `allowed_KI`."""
    return slice(None) if allowed_KI is None else allowed_KI[lane]


def _lane(
    terms: tuple[Tensor, Tensor, Tensor], k: int, rows: Tensor | slice = slice(None)
) -> tuple[Tensor, Tensor, Tensor]:
    aa, ac, cc = terms
    return aa[k][rows], ac[k][rows], cc[k][rows]


def _square_norms(a: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the coefficients (..., I, 1) of |w_a a + w_c c|^2 in w_a^2, w_a w_c and w_c^2."""
    return (a * a).sum(-1, keepdim=True), 2 * (a * c).sum(-1, keepdim=True), (c * c).sum(-1, keepdim=True)
