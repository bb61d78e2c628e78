"""Score configurations while they are selected: on folds of seen classes, and on unlabelled target images.

Suffixes: K lanes, I source images, T target images, C classes, F folds.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

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
    """val_h_mean and val_h_std over folds, val_seen, val_unseen, and target_mi in [0, 1]."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(epoch, score) at every rung and at the end."""
    epochs: int = 0
    """Epochs trained."""
    train_seconds: float = 0.0
    """Its share of the pack's time."""
    error: str = ""
    """Why it failed."""


def score_lanes(
    pack: Pack,
    lanes: Sequence[tuple[int, int | None]],
    data: TrialData,
    criterion: Criterion,
    results: Mapping[int, LaneResult],
) -> None:
    """Append each configuration's score to its result; one of whose lanes the loss was not finite fails.

    `lanes`: (configuration, fold) of each lane, fold None for an oracle. `results`: of the configurations to score.
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
    information = [0.0] * len(lanes)
    if pack.method.uses_target:
        information = mutual_information(pack.predict(data.target_features_TD)).tolist()
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
            [information[k] for k in of_config],
        )
        # the refit takes the values that are best for the mean of the folds, coupled ones together
        result.metrics |= knobs[i]
        result.score = selection_score(result.metrics, criterion if data.oracle_labels_T is None else "h")
        result.curve.append((result.epochs, result.score))
