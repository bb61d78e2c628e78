"""Score configurations: accuracies on seen and unseen classes, H, mutual information.

Suffixes: K lanes, I source images, T target images, C classes, F folds, L lanes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from models.sweeps import harmonic_mean
from study.protocol.trial_data import TrialData, scored_images, seen_classes

# --- scores ---------------------------------------------------------------------------------------------------------


def class_accuracy(predictions_LT: Tensor, labels_T: Tensor, num_classes: int) -> Tensor:
    """Return the accuracy per class (L, C), NaN for classes without images."""
    count_C = torch.bincount(labels_T, minlength=num_classes)
    sums_LC = torch.zeros(predictions_LT.shape[0], num_classes, device=labels_T.device)
    return sums_LC.index_add_(1, labels_T, (predictions_LT == labels_T).float()) / count_C  # 0 / 0 = NaN


def seen_unseen(predictions_LT: Tensor, labels_T: Tensor, seen_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return S, U and H, (L,) each.

    S and U are mean per-class accuracies over the seen and unseen classes that have images, 0 where none has."""
    accuracy_LC = class_accuracy(predictions_LT, labels_T, len(seen_C))
    seen_L = accuracy_LC[:, seen_C].nanmean(1).nan_to_num()
    unseen_L = accuracy_LC[:, ~seen_C].nanmean(1).nan_to_num()
    return seen_L, unseen_L, joint_accuracy(seen_L, unseen_L, seen_C[labels_T])


def joint_accuracy(seen: Tensor, unseen: Tensor, known_T: Tensor) -> Tensor:
    """Return H of the accuracies on seen and unseen classes; where all images are of one kind, their accuracy."""
    if known_T.all():
        return seen
    return harmonic_mean(seen, unseen) if known_T.any() else unseen


Criterion = Literal["consensus", "agreement", "h*mi", "h", "mi"]
"""What ranks configurations.

- `agreement` of their predictions with a consensus of training-free methods on unlabelled target images;
- `consensus`: that while the search runs; once it is over, agreement with the consensus of all trained configurations
  chooses (see `consensus.py`);
- `h`: H on the pseudo-unseen folds; `mi`: mutual information of target images and predictions; `h*mi`: the geometric
  mean of both.
"""


def pseudo_unseen_scores(
    predictions_KI: Tensor, folds: Sequence[int], data: TrialData
) -> tuple[list[float], list[float], list[float]]:
    """Return S, U and H of each lane in its fold.

    S is measured on held-out images of the lane's seen classes, U on all images of its fold's classes."""
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
    """Return the mutual information (K,) in [0, 1] of images and predictions, from logits (K, chunk, C).

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
    seen: Sequence[float], unseen: Sequence[float], h: Sequence[float], target: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """Return a configuration's selection metrics from those of its folds.

    `target`: target_mi and target_agreement of each fold, as far as they were measured.
    """
    h_F = torch.tensor(h)
    return {
        "val_h_mean": float(h_F.mean()),
        "val_h_std": float(h_F.std(correction=0)),
        "val_seen": sum(seen) / len(seen),
        "val_unseen": sum(unseen) / len(unseen),
        **{name: sum(values) / len(values) for name, values in target.items()},
    }


def measured_criterion(metrics: Mapping[str, float], criterion: Criterion) -> Criterion:
    """Return what the search maximises of these metrics: `h` where the method may not see the target.

    While it runs, `consensus` is agreement with training-free methods.
    """
    if "target_mi" not in metrics:
        return "h"
    return "agreement" if criterion == "consensus" else criterion


def selection_score(metrics: Mapping[str, float], criterion: Criterion) -> float:
    """Return the score that the search maximises, see `measured_criterion`."""
    h, information = metrics["val_h_mean"], metrics.get("target_mi", 0.0)
    match measured_criterion(metrics, criterion):
        case "h":
            return h
        case "mi":
            return information
        case "h*mi":
            return math.sqrt(max(0.0, h * information))
        case _:
            return metrics["target_agreement"]
