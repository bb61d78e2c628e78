"""How a configuration is scored while configurations are selected: from folds of seen classes and unlabelled images.

Suffixes: K lanes, I source images, T target images, C classes, F folds.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from study.protocol import MUTUAL_INFORMATION_WEIGHT, TrialData, seen_unseen, within_halves

if TYPE_CHECKING:
    from study.trainer import LaneResult, Pack

Criterion = Literal["h+mi", "h", "mi"]


def seen_classes(data: TrialData, fold: int | None) -> Tensor:
    """Bool (C,): the classes a lane may know of; those of its fold play unseen ones."""
    return data.seen_C if fold is None else data.seen_C & (data.fold_C != fold)


def trainable_images(data: TrialData, fold: int | None) -> Tensor:
    """Bool (I,): the source images a lane may train on. Without a fold (refits, the oracle) all of them."""
    if fold is None:
        return torch.ones_like(data.held_out_I)
    return seen_classes(data, fold)[data.source_labels_I] & ~data.held_out_I


def scored_images(data: TrialData, fold: int) -> Tensor:
    """Bool (I,): held-out images of a fold's seen classes and all images of its pseudo-unseen ones."""
    return data.held_out_I | (data.fold_C == fold)[data.source_labels_I]


def score(
    pack: "Pack",
    lanes: Sequence[tuple[int, int | None]],
    data: TrialData,
    criterion: Criterion,
    results: Mapping[int, "LaneResult"],
) -> None:
    """Append each configuration's score to its result; one of whose lanes the loss was not finite fails."""
    # calibrated first: predictions depend on the swept knobs
    folds = [fold for _, fold in lanes if fold is not None]
    if data.oracle_labels_T is not None:
        everything_KT = torch.ones(len(lanes), len(data.oracle_labels_T), dtype=torch.bool)
        swept = pack.calibrate(data.target_features_TD, data.oracle_labels_T, everything_KT)
        target_1C = None if data.target_C is None else data.target_C[None]
        predictions_KT = pack.classify(data.target_features_TD, target_1C)
        if data.halves:
            classify = functools.partial(pack.classify, data.target_features_TD)
            predictions_KT = within_halves(classify, data.oracle_labels_T, pack.seen_KC)
        scores = seen_unseen(predictions_KT, data.oracle_labels_T, data.seen_C)
        seen_K, unseen_K, h_K = (s.tolist() for s in scores)
    else:
        scored_KI = torch.stack([scored_images(data, fold) for fold in folds])
        swept = pack.calibrate(data.source_features_ID, data.source_labels_I, scored_KI)
        if data.apart:
            classify = functools.partial(pack.classify, data.source_features_ID)
            predictions_KI = within_halves(classify, data.source_labels_I, pack.seen_KC)
        else:
            predictions_KI = pack.classify(data.source_features_ID)
        seen_K, unseen_K, h_K = pseudo_unseen_scores(predictions_KI, folds, data)
    information = [0.0] * len(lanes)
    if pack.method.uses_target:
        information = mutual_information(pack.predict(data.target_features_TD)).tolist()
    diverged_K = pack.diverged_K.tolist()
    for i, result in results.items():
        of_config = [k for k, (j, _) in enumerate(lanes) if j == i]
        if any(diverged_K[k] for k in of_config):
            result.state, result.score, result.error = "failed", None, f"loss was not finite by epoch {result.epochs}"
            continue
        result.metrics = summarise(
            [seen_K[k] for k in of_config],
            [unseen_K[k] for k in of_config],
            [h_K[k] for k in of_config],
            [information[k] for k in of_config],
        )
        # the refit takes the middle fold's value: a mean would be lost to one fold that chose infinity
        result.metrics |= {name: sorted(swept[k][name] for k in of_config)[len(of_config) // 2] for name in swept[0]}
        result.score = selection_score(result.metrics, criterion if data.oracle_labels_T is None else "h")
        result.curve.append((result.epochs, result.score))


def pseudo_unseen_scores(
    predictions_KI: Tensor, folds: Sequence[int], data: TrialData
) -> tuple[list[float], list[float], list[float]]:
    """S, U and H of each lane in its fold: held-out images of its seen classes, all images of its fold's classes."""
    seen: list[Tensor] = []
    unseen: list[Tensor] = []
    h: list[Tensor] = []
    for predicted_I, fold in zip(predictions_KI, folds, strict=True):
        seen_C = seen_classes(data, fold)
        scored_I = scored_images(data, fold)
        for values, value in zip(
            (seen, unseen, h),
            seen_unseen(predicted_I[None, scored_I], data.source_labels_I[scored_I], seen_C),
            strict=True,
        ):
            values.append(value)
    return torch.cat(seen).tolist(), torch.cat(unseen).tolist(), torch.cat(h).tolist()


def mutual_information(logits: Iterable[Tensor]) -> Tensor:
    """How much predictions tell about unlabelled images, (K,) in [0, 1], from logits (K, chunk, C), chunk by chunk.

    Entropy of the mean prediction minus mean entropy of the predictions, over its maximum log C. Needs no label.
    """
    sums: list[Tensor] = []
    entropies: list[Tensor] = []
    images = 0
    for logits_KBC in logits:
        log_p = logits_KBC.log_softmax(-1)
        p = log_p.exp()
        sums.append(p.sum(1))
        entropies.append(-(p * log_p).sum((1, 2)))
        images += p.shape[1]
    mean_KC = torch.stack(sums).sum(0) / images
    entropy_of_mean_K = -torch.xlogy(mean_KC, mean_KC).sum(-1)
    return (entropy_of_mean_K - torch.stack(entropies).sum(0) / images) / math.log(mean_KC.shape[1])


def summarise(
    seen: Sequence[float], unseen: Sequence[float], h: Sequence[float], information: Sequence[float]
) -> dict[str, float]:
    """A configuration's selection metrics from those of its folds."""
    h_F = torch.tensor(h)
    return {
        "val_h_mean": float(h_F.mean()),
        "val_h_std": float(h_F.std(correction=0)),
        "val_seen": sum(seen) / len(seen),
        "val_unseen": sum(unseen) / len(unseen),
        "target_mi": sum(information) / len(information),
    }


def selection_score(metrics: dict[str, float], criterion: Criterion) -> float:
    """What the search maximises: H of the pseudo-unseen folds, the target's mutual information, or their sum."""
    h, information = metrics["val_h_mean"], metrics["target_mi"]
    return {"h": h, "mi": information, "h+mi": h + MUTUAL_INFORMATION_WEIGHT * information}[criterion]
