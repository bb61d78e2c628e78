"""Score configurations while they are selected: on folds of seen classes, and on unlabelled target images.

Suffixes: K lanes, I source images, T target images, C classes, F folds.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from models.sweeps import best_of_mean
from study.protocol.consensus import Votes, agreement, predict_target, votes_of
from study.protocol.scores import (
    Criterion,
    mutual_information,
    pseudo_unseen_scores,
    seen_unseen,
    selection_score,
    summarise,
)
from study.protocol.trial_data import TrialData, scored_images
from study.training.pack import Pack

CONSTANT, CALIBRATED_H = "seen_constant", "val_h_calibrated"
"""Metrics of complete configurations: the constant that suits the folds best, and H with it, cross-fitted."""

THRESHOLDS = {"tau", "constant"}
"""Knobs that are such a constant already."""


@dataclass(kw_only=True)
class LaneResult:
    """What became of one configuration."""

    state: Literal["complete", "pruned", "failed"] = "complete"
    """Trained to the end, stopped at a rung, or diverged."""
    score: float | None = None
    """What selection maximises, at the last epoch trained; None if failed."""
    metrics: dict[str, float] = field(default_factory=dict)
    """val_h_mean and val_h_std over folds, val_seen, val_unseen, and, of methods that may see the target, target_mi and
    target_agreement, all in [0, 1]."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(epoch, score) at every rung and at the end."""
    epochs: int = 0
    """Epochs trained."""
    train_seconds: float = 0.0
    """Its share of the pack's time."""
    error: str = ""
    """Why it failed."""
    votes: Votes | None = None
    """What it predicts for target images, if it is complete and a consensus is going to be asked for."""


def score_lanes(
    pack: Pack,
    lanes: Sequence[tuple[int, int | None]],
    data: TrialData,
    criterion: Criterion,
    results: Mapping[int, LaneResult],
    last_epoch: int,
) -> None:
    """Append each configuration's score to its result; one of whose lanes the loss was not finite fails.

    `lanes`: (configuration, fold) of each lane, fold None for an oracle. `results`: of the configurations to score.
    `last_epoch`: configurations that have trained so long are complete, and vote where there is a consensus.
    """
    groups = {i: [k for k, (j, _) in enumerate(lanes) if j == i] for i, _ in lanes}
    constants: dict[int, dict[str, float]] = {}
    # calibrated first: predictions depend on the swept knobs
    if data.oracle_labels_T is not None:
        everything_KT = torch.ones(len(lanes), len(data.oracle_labels_T), dtype=torch.bool)
        swept = pack.calibrate(data.target_features_TD, data.oracle_labels_T, everything_KT, list(groups.values()))
        classify = functools.partial(pack.classify, data.target_features_TD)
        predictions_KT = data.competing.predict_test(classify, data.oracle_labels_T, pack.seen_KC)
        scores = seen_unseen(predictions_KT, data.oracle_labels_T, data.seen_C)
        seen_K, unseen_K, h_K = (s.tolist() for s in scores)
    else:
        folds = [fold for _, fold in lanes if fold is not None]
        scored_KI = torch.stack([scored_images(data, fold) for fold in folds])
        predictions_KI, swept = _cross_fitted(pack, data, scored_KI, list(groups.values()))
        seen_K, unseen_K, h_K = pseudo_unseen_scores(predictions_KI, folds, data)
        # none where no threshold decides, or the method has one of its own
        due = [i for i, r in results.items() if r.epochs == last_epoch and data.competing.thresholded]
        alone = {
            i: groups[i] for i, of_one in zip(groups, swept, strict=True) if i in due and not THRESHOLDS & of_one.keys()
        }
        constants = _constants(pack, data, scored_KI, alone, folds)
    target_KT, target = _on_target(pack, data) if pack.method.uses_target else (None, {})
    diverged_K = pack.diverged_K.tolist()
    knobs = dict(zip(groups, swept, strict=True))
    for i, result in results.items():
        of_config = groups[i]
        if any(diverged_K[k] for k in of_config):
            result.state, result.score, result.error = "failed", None, f"loss was not finite by epoch {result.epochs}"
            continue
        result.metrics = summarise(
            [seen_K[k] for k in of_config],
            [unseen_K[k] for k in of_config],
            [h_K[k] for k in of_config],
            {name: [values[k] for k in of_config] for name, values in target.items()},
        )
        # the refit takes the values that are best for the mean of the folds, coupled ones together
        result.metrics |= {**knobs[i], **constants.get(i, {})}
        oracle = data.oracle_labels_T is not None
        result.score = selection_score(result.metrics, "h" if oracle else criterion)
        result.curve.append((result.epochs, result.score))
        if target_KT is not None and criterion == "consensus" and result.epochs == last_epoch and not oracle:
            result.votes = votes_of(target_KT[of_config], pack.embed(of_config), data)


def _cross_fitted(
    pack: Pack, data: TrialData, scored_KI: Tensor, groups: Sequence[Sequence[int]]
) -> tuple[Tensor, list[Mapping[str, float]]]:
    """Return the classes (K, I) of the source images, and the inference-time knobs of each group of lanes.

    Where knobs are swept, an image is classified with those that are best on the other half of the images: on the
    images that they were chosen by, H would be too good, and the better the more knobs there are. The knobs that are
    returned, and set, are those of all images.
    """
    features_ID, labels_I = data.source_features_ID, data.source_labels_I
    classify = functools.partial(pack.classify, features_ID)
    halves = (half := _halves(labels_I), ~half) if pack.method.swept else ()
    predictions = []
    for half_I in halves:
        pack.calibrate(features_ID, labels_I, scored_KI & half_I, groups)
        predictions.append(data.competing.predict_labelled(classify, labels_I, pack.seen_KC))
    swept = pack.calibrate(features_ID, labels_I, scored_KI, groups)
    if halves:
        of_first, of_second = predictions
        return torch.where(halves[0], of_second, of_first), swept
    return data.competing.predict_labelled(classify, labels_I, pack.seen_KC), swept


def _halves(labels_I: Tensor) -> Tensor:
    """Return (I,) bool: every other image of each class."""
    place_I = torch.empty_like(labels_I)
    order = labels_I.argsort(stable=True)
    first_I = torch.searchsorted(labels_I[order], labels_I[order])  # where the class begins
    place_I[order] = torch.arange(len(labels_I), device=labels_I.device) - first_I
    return place_I % 2 == 0


def _constants(
    pack: Pack, data: TrialData, scored_KI: Tensor, groups: Mapping[int, Sequence[int]], folds: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Return each configuration's constant between seen and unseen classes, and H of the folds with it, cross-fitted.

    The constant (Chao et al., 2016) is subtracted from logits of seen classes: every method may have one, found exactly
    on the folds. `groups`: the lanes of each configuration.
    """
    if not groups:
        return {}
    division = pack.divide(data.source_features_ID)
    labels_I, scored_KI, half_I = data.source_labels_I.cpu(), scored_KI.cpu(), _halves(data.source_labels_I.cpu())

    def best(lanes: Sequence[int], among_I: Tensor) -> float:
        return best_of_mean(
            [division.curve(k, labels_I, pack.seen_KC[k].cpu(), scored_KI[k] & among_I) for k in lanes]
        ).tau

    found = {}
    for i, lanes in groups.items():
        if not division.lead_KI[lanes].isfinite().all():
            continue  # diverged
        of_first, of_second = best(lanes, half_I), best(lanes, ~half_I)
        constant_I = torch.where(half_I, of_second, of_first)
        predictions_KI = division.at(constant_I)[lanes].to(data.source_labels_I.device)
        _, _, h = pseudo_unseen_scores(predictions_KI, [folds[k] for k in lanes], data)
        constant = best(lanes, torch.ones_like(half_I))
        found[i] = {CONSTANT: constant, CALIBRATED_H: sum(h) / len(h)}
    return found


def _on_target(pack: Pack, data: TrialData) -> tuple[Tensor, dict[str, list[float]]]:
    """Return each lane's predictions (K, T) for target images, and what they are worth without labels, by lane."""
    predicted: list[Tensor] = []

    def note(logits_KBC: Tensor) -> Tensor:
        predicted.append(predict_target(logits_KBC, data.competing))
        return logits_KBC

    target = {"target_mi": mutual_information(map(note, pack.predict(data.target_features_TD))).tolist()}
    predicted_KT = torch.cat(predicted, dim=1)
    if data.reference_T is not None:
        target["target_agreement"] = agreement(predicted_KT, data.reference_T, data.seen_C).tolist()
    return predicted_KT, target
