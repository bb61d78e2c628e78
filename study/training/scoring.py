"""Score configurations while they are selected: on folds of seen classes, and on unlabelled target images.

Suffixes: K lanes, I source images, T target images, C classes, F folds.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

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
        swept = pack.calibrate(data.source_features_ID, data.source_labels_I, scored_KI, list(groups.values()))
        classify = functools.partial(pack.classify, data.source_features_ID)
        predictions_KI = data.competing.predict_labelled(classify, data.source_labels_I, pack.seen_KC)
        seen_K, unseen_K, h_K = pseudo_unseen_scores(predictions_KI, folds, data)
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
        result.metrics |= knobs[i]
        oracle = data.oracle_labels_T is not None
        result.score = selection_score(result.metrics, "h" if oracle else criterion)
        result.curve.append((result.epochs, result.score))
        if target_KT is not None and criterion == "consensus" and result.epochs == last_epoch and not oracle:
            result.votes = votes_of(target_KT[of_config], pack.embed(of_config), data)


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
