"""Metrics of the final test: accuracies, H, and paired-bootstrap intervals.

Suffixes: L lanes or seeds, T target images, C classes, S resamples, G kinds of images.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from study.protocol.scores import joint_accuracy, seen_unseen


def evaluate(predictions_LT: Tensor, labels_T: Tensor, seen_C: Tensor) -> list[dict[str, float]]:
    """Return test metrics of every lane's predictions: known, unknown, all micro accuracy, S and U per class, and H.

    What has no image is NaN; where all images are of seen or all of unseen classes, H is the mean accuracy of those.
    """
    correct_LT = predictions_LT == labels_T
    known_T = seen_C[labels_T]
    seen_L, unseen_L, h_L = seen_unseen(predictions_LT, labels_T, seen_C)
    columns = {
        "test_known_micro": correct_LT[:, known_T].float().mean(1),
        "test_unknown_micro": correct_LT[:, ~known_T].float().mean(1),
        "test_all_micro": correct_LT.float().mean(1),
        "test_seen_mean": seen_L if known_T.any() else seen_L * math.nan,
        "test_unseen_mean": unseen_L if not known_T.all() else unseen_L * math.nan,
        "test_h": h_L,
    }
    return [{name: float(v[i]) for name, v in columns.items()} for i in range(len(predictions_LT))]


def paired_bootstrap(
    tests: Sequence[tuple[Tensor, Tensor, Tensor]], labels_T: Tensor, *, samples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean H difference to a baseline and its 95 % interval over test images.

    `tests`: for every rotation, the predictions of the method and of the baseline, (seeds, T) each, and seen_C (C,).
    One resample draws the same images for both methods, all seeds and all rotations: it is the images that are a
    sample, and rotations share them. A class without an image in a resample drops out of that resample's means.
    """
    # images of one class that the same predictions get right are alike: to draw images is to draw how many of each
    # kind come, and there are far fewer kinds than images
    predictions = [predicted_LT for method, baseline, _ in tests for predicted_LT in (method, baseline)]
    right_LT = (torch.cat(predictions) == labels_T).long()
    kinds_XG, count_G = torch.unique(torch.cat([labels_T[None], right_LT]), dim=1, return_counts=True)
    labels_G, right = kinds_XG[0], kinds_XG[1:].float().split([len(p) for p in predictions])
    seen_of_tests = [seen_C for _, _, seen_C in tests]
    alike = list(zip(right[::2], right[1::2], seen_of_tests, strict=True))
    rng, share_G = np.random.default_rng(seed), (count_G.double() / len(labels_T)).numpy()
    chunk = max(1, 2**20 // len(count_G))
    gain_S = torch.empty(1 + samples)
    gain_S[:1] = _h_gains(alike, labels_G, count_G.float()[None])  # the observed sample itself
    for start in range(0, samples, chunk):
        drawn_SG = rng.multinomial(len(labels_T), share_G, size=min(chunk, samples - start))
        gain_S[1 + start : 1 + start + chunk] = _h_gains(alike, labels_G, torch.from_numpy(drawn_SG).float())
    # a resample without seen or unseen images has no H
    low, high = np.nanquantile(gain_S[1:].numpy(), [0.025, 0.975])
    return float(gain_S[0]), float(low), float(high)


def resampled_h(
    tests: Sequence[tuple[Tensor, Tensor]], labels_T: Tensor, *, samples: int = 500, seed: int = 0
) -> Tensor:
    """Return H (1 + S,) of a row: the observed one, then that of each resample of the test images.

    `tests`: for every rotation, predictions (seeds, T) and seen_C (C,). The same seed draws the same images: the
    differences between two rows are paired, whichever two they are.
    """
    rng, images = np.random.default_rng(seed), len(labels_T)
    right = [((predictions_LT == labels_T).float(), seen_C) for predictions_LT, seen_C in tests]
    parts, chunk = [_mean_h(right, labels_T, torch.ones(1, images))], max(1, 2**22 // images)
    for start in range(0, samples, chunk):
        drawn_SI = torch.from_numpy(rng.integers(images, size=(min(chunk, samples - start), images)))
        weights_ST = torch.zeros(drawn_SI.shape).scatter_add_(1, drawn_SI, torch.ones(drawn_SI.shape))
        parts.append(_mean_h(right, labels_T, weights_ST))
    return torch.cat(parts)


def _h_gains(tests: Sequence[tuple[Tensor, Tensor, Tensor]], labels_G: Tensor, weights_SG: Tensor) -> Tensor:
    """Return the H difference (S,) under each row of weights of kinds of images, mean over seeds, then rotations.

    `tests`: as in `paired_bootstrap`, but 1.0 where a prediction is right, (seeds, G).
    """
    method, baseline = ([(test[side], test[2]) for test in tests] for side in (0, 1))
    return _mean_h(method, labels_G, weights_SG) - _mean_h(baseline, labels_G, weights_SG)


def _mean_h(tests: Sequence[tuple[Tensor, Tensor]], labels_G: Tensor, weights_SG: Tensor) -> Tensor:
    """Return H (S,) under each row of weights, mean over seeds, then rotations.

    `tests`: for every rotation, 1.0 where a prediction is right, (seeds, G), and seen_C (C,).
    """
    known = len(tests[0][1])
    index_SG = labels_G.expand(len(weights_SG), -1)

    def by_class(weights_SG: Tensor) -> Tensor:
        return torch.zeros(len(weights_SG), known).scatter_add_(1, index_SG, weights_SG)

    count_SC = by_class(weights_SG)
    of_rotations = []
    for right_LG, seen_C in tests:
        accuracies = (by_class(weights_SG * right_G) / count_SC for right_G in right_LG)
        of_seeds = [
            joint_accuracy(a_SC[:, seen_C].nanmean(1), a_SC[:, ~seen_C].nanmean(1), seen_C[labels_G])
            for a_SC in accuracies
        ]
        of_rotations.append(torch.stack(of_seeds).mean(0))
    return torch.stack(of_rotations).mean(0)
