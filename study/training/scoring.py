"""Score configurations while they are selected: on folds of seen classes, and on unlabelled target images.

Suffixes: K lanes, I source images, T target images, C classes, F folds.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from models.heads import FittedHead, Head, fitted_heads
from models.stacked import in_chunks
from models.sweeps import best_of_mean, lead_of_seen
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
from study.training.pack import Division, Pack

CONSTANT, CALIBRATED_H = "seen_constant", "val_h_calibrated"
"""Metrics of complete configurations, and of their heads: the constant that suits the folds best, and H with it,
cross-fitted."""

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
            result.votes = _votes(pack, of_config, target_KT[of_config], data)


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
    return {
        i: _constant(division.of(lanes), pack.seen_KC[lanes], scored_KI[lanes], [folds[k] for k in lanes], data)
        for i, lanes in groups.items()
        if division.lead_KI[lanes].isfinite().all()  # else it diverged
    }


def _constant(
    division: Division, seen_KC: Tensor, scored_KI: Tensor, folds: Sequence[int], data: TrialData
) -> dict[str, float]:
    """Return the constant of a configuration, whose lanes divide the source images, and H of the folds with it."""
    labels_I, seen_KC, scored_KI = data.source_labels_I.cpu(), seen_KC.cpu(), scored_KI.cpu()
    half_I = _halves(labels_I)

    def best(among_I: Tensor) -> float:
        curves = [division.curve(k, labels_I, seen_KC[k], scored_KI[k] & among_I) for k in range(len(seen_KC))]
        return best_of_mean(curves).tau

    constant_I = torch.where(half_I, best(~half_I), best(half_I))
    predictions_KI = division.at(constant_I).to(data.source_labels_I.device)
    _, _, h = pseudo_unseen_scores(predictions_KI, folds, data)
    return {CONSTANT: best(torch.ones_like(half_I)), CALIBRATED_H: sum(h) / len(h)}


def _votes(pack: Pack, lanes: Sequence[int], predicted_FT: Tensor, data: TrialData) -> Votes:
    """Return what a configuration predicts for the target under each head, and what the folds say of the head.

    `lanes`: those of the configuration, fold by fold. `predicted_FT`: what it predicts without a head.
    """
    module = pack.part(lanes)
    embedded = module.embed(data.target_features_TD) if pack.takes_head else None
    if embedded is None:
        return votes_of(predicted_FT, [], data)
    heads = [fitted_heads(*fold, data.logit_scale) for fold in zip(*embedded, strict=True)]
    votes = votes_of(predicted_FT, heads, data)
    of_source = module.embed(data.source_features_ID) if data.competing.thresholded else None
    if of_source is None:
        return votes
    scored_FI = torch.stack([scored_images(data, fold) for fold in range(len(heads))]).cpu()
    of_heads: dict[Head, dict[str, float]] = {
        head: _on_folds([of_fold[head] for of_fold in heads], of_source[0], pack.seen_KC[lanes], scored_FI, data)
        for head in heads[0]
    }
    return replace(votes, metrics=of_heads)


def _on_folds(
    heads: Sequence[FittedHead], features_FID: Tensor, seen_FC: Tensor, scored_FI: Tensor, data: TrialData
) -> dict[str, float]:
    """Return H, S and U of a head on the folds, and its constant, by the adapted features of the source images."""
    folds = range(len(heads))
    # images that no fold is scored on are not classified: on a large source most of the work
    lead_FI = torch.zeros(scored_FI.shape)
    seen_FI, unseen_FI = lead_FI.long(), lead_FI.long()
    for fold, head in enumerate(heads):
        rows_B = scored_FI[fold].nonzero().flatten()
        divide = functools.partial(_divided, head, seen_FC[fold])
        parts = in_chunks(divide, features_FID[fold, rows_B.to(features_FID.device)])
        lead_FI[fold, rows_B], seen_FI[fold, rows_B], unseen_FI[fold, rows_B] = (part[0].cpu() for part in parts)
    if not lead_FI.isfinite().all():
        return {}  # diverged in its last step
    division = Division(lead_KI=lead_FI, seen_KI=seen_FI, unseen_KI=unseen_FI)
    plain = pseudo_unseen_scores(division.at(0.0).to(features_FID.device), folds, data)
    return {**summarise(*plain, {}), **_constant(division, seen_FC, scored_FI, folds, data)}


def _divided(head: FittedHead, seen_C: Tensor, images_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return lead_of_seen(head.logits(images_BD)[None], seen_C[None])


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
