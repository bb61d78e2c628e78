"""Agreement with a consensus on unlabelled target images: how configurations are ranked without labels.

Every configuration predicts a class for every target image, once per fold and per head (`models/heads.py`). The
consensus is the class with the most of these votes. A configuration that errs alone disagrees with it, so agreement
ranks configurations as their accuracy would. Sources: ensemble-based validation (EnsV, Hu et al., 2023); Musgrave et
al. (2022) compare validators for unsupervised domain adaptation.

Votes count alike, whatever their confidence: probabilities of different heads are not on one scale.

An *ensemble* are refitted configurations that vote in the same way. They can be exported; the consensus cannot.

Suffixes: V voters (configuration, fold and head), F folds, H heads, T target images, C classes, B images of a block, M
members of an ensemble.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.heads import HEADS, FittedHead, Head, fitted_heads
from models.stacked import unit_features
from models.sweeps import class_mean_weights
from study.protocol.scores import seen_unseen
from study.protocol.task import CompetingClasses, best_class
from study.protocol.trial_data import TrialData
from study.protocol.votes import Votes

BLOCK = 2**26
"""Votes counted at once: 256 MB."""


def compact(classes_FT: Tensor, classes: int) -> NDArray[np.integer]:
    """Return predicted classes in the smallest integers that hold them."""
    return classes_FT.cpu().numpy().astype(np.int16 if classes <= 2**15 else np.int32)


def consensus(votes: Sequence[Votes], classes: int) -> Tensor:
    """Return the class (T,) with the most votes for each target image; of several the smallest."""
    return torch.cat([counts_BC.argmax(1) for counts_BC in _counts(_voters(votes), classes)])


def divided_consensus(votes: Sequence[Votes], seen_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lead of the best seen over the best unseen class in votes, and both classes, (T,) each."""
    return _divided(_counts(_voters(votes), len(seen_C)), seen_C)


def divided_ensemble(predicted_MT: Tensor, seen_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `divided_consensus` does for the votes of members, the best in selection first."""
    rows = [predicted_T[None] for predicted_T in predicted_MT.cpu().numpy()]
    return _divided(_counts(rows, len(seen_C), vote_weights(len(rows))), seen_C)


def vote_weights(members: int) -> Tensor:
    """Return what each member's vote counts (M,): one, and so little more that of equal votes the first member decides.

    Together, what they count more is less than one vote.
    """
    return 1 + 0.5 ** torch.arange(1, members + 1)


def _divided(counts: Iterable[Tensor], seen_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    parts = []
    for counts_BC in counts:
        seen, unseen = counts_BC.masked_fill(~seen_C, -1).max(1), counts_BC.masked_fill(seen_C, -1).max(1)
        parts.append((seen.values - unseen.values, seen.indices, unseen.indices))
    lead_T, seen_T, unseen_T = (torch.cat(of_blocks) for of_blocks in zip(*parts, strict=True))
    return lead_T, seen_T, unseen_T


def _voters(votes: Sequence[Votes]) -> list[NDArray[np.integer]]:
    """Return all predicted classes (F, T) that count: the vote of the heads is no voter of its own, they have voted."""
    return [rows_FT for of_one in votes for head, rows_FT in of_one.classes.items() if head != "vote"]


def _counts(
    predicted: Sequence[NDArray[np.integer]], classes: int, weights_V: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield each class's votes (B, C) for a block of target images: never for all of them."""
    size = max(1, BLOCK // classes)
    for start in range(0, predicted[0].shape[1], size):
        blocks = [rows_FT[:, start : start + size].astype(np.int64) for rows_FT in predicted]
        classes_BV = torch.from_numpy(np.concatenate(blocks)).T.contiguous()
        weights_BV = torch.ones(classes_BV.shape) if weights_V is None else weights_V.expand_as(classes_BV)
        yield torch.zeros(len(classes_BV), classes).scatter_add_(1, classes_BV, weights_BV)


def agreement(classes_FT: Tensor, labels_T: Tensor, seen_C: Tensor) -> Tensor:
    """Return how far predictions agree with pseudo-labels on each fold (F,): H of seen and unseen classes.

    As H on true labels counts: every pseudo-class alike, however many images have it.
    """
    return seen_unseen(classes_FT, labels_T, seen_C)[2]


def agreements(votes: Votes, labels_T: Tensor, seen_C: Tensor) -> dict[Head, float]:
    """Return the agreement of a configuration's votes under each head, mean over folds."""
    return {
        head: float(agreement(torch.from_numpy(rows_FT.astype(np.int64)), labels_T, seen_C).mean())
        for head, rows_FT in votes.classes.items()
    }


def noise_of_difference(best_FT: Tensor, other_FT: Tensor, labels_T: Tensor, seen_C: Tensor) -> float:
    """Return the standard error of the difference in agreement between two predictions, (F, T) each.

    Both see the same images, so only images on which they differ count. By the delta method: H = 2SU / (S + U) is
    linear in the images near the best prediction's S and U; variances are within pseudo-classes, whose sizes are given.
    """
    best_T, other_T = ((rows_FT == labels_T).double().mean(0) for rows_FT in (best_FT, other_FT))
    seen_T, unseen_T = class_mean_weights(labels_T, seen_C)
    s, u = float(seen_T @ best_T), float(unseen_T @ best_T)
    slope_T = (2 * u * u * seen_T + 2 * s * s * unseen_T) / max((s + u) ** 2, 1e-12)
    off_T = slope_T * (best_T - other_T)
    count_C = torch.bincount(labels_T, minlength=len(seen_C))
    of_class_C = torch.zeros(len(seen_C), dtype=torch.float64).index_add_(0, labels_T, off_T)
    variance = float((off_T**2).sum() - (of_class_C**2 / count_C.clamp_min(1)).sum())
    return max(variance, 0.0) ** 0.5


def predict_target(logits: Tensor, competing: CompetingClasses) -> Tensor:
    """Return the classes (..., T) that logits (..., T, C) predict for target images."""
    logits_KTC = logits if logits.dim() == 3 else logits[None]
    predicted_KT = competing.predict_target(lambda among_KC: best_class(logits_KTC, among_KC))
    return predicted_KT if logits.dim() == 3 else predicted_KT[0]


def votes_of(predicted_FT: Tensor, heads: Sequence[Mapping[Head, FittedHead]], data: TrialData) -> Votes:
    """Return the votes of a configuration on the target, from its lanes on the folds.

    `predicted_FT`: its own predictions. `heads`: those of each fold; none where it takes no head.
    """
    classes = len(data.seen_C)
    votes: dict[Head, NDArray[np.integer]] = {"none": compact(predicted_FT, classes)}
    for head in HEADS[1:] if heads else ():
        predicted = [predict_target(of_fold[head].target_logits(), data.competing) for of_fold in heads]
        votes[head] = compact(torch.stack(predicted), classes)
    return Votes(classes=votes)


def training_free_labels(data: TrialData) -> Tensor:
    """Return the consensus (T,) of zero-shot CLIP and the training-free transductive methods on the target.

    Known before the first configuration trains, so it does not move under the search that maximises agreement with it.
    """
    features_TD, texts_CD = unit_features(data.target_features_TD), data.name_features_CD
    zero_shot_1T = predict_target((data.logit_scale * features_TD @ texts_CD.T)[None], data.competing)
    heads = [fitted_heads(features_TD, texts_CD, data.logit_scale)]
    return consensus([votes_of(zero_shot_1T, heads, data)], len(data.seen_C))
