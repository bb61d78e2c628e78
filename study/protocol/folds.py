"""Deal the seen classes into folds, relatives into different ones.

Suffixes: C classes, I source images.
"""

import math

import networkx as nx
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from data_prep.errors import UserError
from data_prep.feature_store import FeatureSet

LEAST_PATH = 1 / 256
"""Below the path similarity of any two classes that WordNet connects."""

HELD_OUT_SHARE = 0.2
"""Share of source images per class held out where a benchmark has no validation split."""


def check_folds(folds: int, seen_classes: int) -> None:
    """Raise `UserError` where a fold would leave fewer than two classes on either side."""
    if folds < 2 or seen_classes < 2 * folds or seen_classes - math.ceil(seen_classes / folds) < 2:
        raise UserError(
            f"must be at least 2 with two seen classes in each; got {folds} for {seen_classes}", option="folds"
        )


def class_folds(features: FeatureSet, seen_C: Tensor, *, folds: int, seed: int) -> Tensor:
    """Return the fold (C,) int64 of every seen class, -1 for unseen ones; sizes of folds differ by at most one.

    Every unseen class is related to some seen ones, so pseudo-unseen classes have to be, too: each class goes to the
    emptiest fold that holds few of its WordNet neighbours, closest pairs first, and its relatives stay in the others.
    Of classes that WordNet does not connect, those with similar texts are relatives.
    """
    classes = torch.nonzero(seen_C).flatten().tolist()
    check_folds(folds, len(classes))
    similarity = _similarity(features)[classes][:, classes].fill_diagonal_(0).numpy()
    # near classes pair up (maximum weight matching), and each pair is dealt to two different folds
    order = np.random.default_rng(seed).permutation(len(classes))
    nearest = nx.Graph()
    nearest.add_nodes_from(order.tolist())
    for i in order:
        for j in np.argsort(-similarity[i], kind="stable")[:5]:
            nearest.add_edge(int(i), int(j), weight=float(similarity[i, j]))
    pairs = sorted((sorted(p) for p in nx.max_weight_matching(nearest, maxcardinality=True)), key=lambda p: p[0])
    dealt = [c for pair in pairs for c in pair]
    dealt += [int(i) for i in order if int(i) not in set(dealt)]
    fold_C = torch.full_like(seen_C, -1, dtype=torch.int64)
    for position, i in enumerate(dealt):
        fold_C[classes[i]] = position % folds
    return fold_C


def _similarity(features: FeatureSet) -> Tensor:
    """Return how near classes are (C, C): by WordNet's paths, and below all of them by their texts."""
    path_CC = features.graph.path_similarity_CC
    texts_CD = normalize(features.name_features_CPD.mean(1), dim=-1)
    return torch.where(path_CC > 0, path_CC, LEAST_PATH * (1 + texts_CD @ texts_CD.T) / 2)


def held_out(split_I: Tensor, labels_I: Tensor, seed: int) -> Tensor:
    """Return (I,) bool: the validation split, or a seeded share of every class where a benchmark has none.

    At least one image of a class that has two; none of a class that has one, which nothing would be left to learn from.
    """
    if (split_I == 1).any():
        return split_I == 1
    rank_I = torch.rand(len(labels_I), generator=torch.Generator().manual_seed(seed))
    held_out_I = torch.zeros(len(labels_I), dtype=torch.bool)
    for c in labels_I.unique():
        of_class = torch.nonzero(labels_I == c).flatten()
        count = max(round(HELD_OUT_SHARE * len(of_class)), int(len(of_class) > 1))
        held_out_I[of_class[rank_I[of_class].argsort()[:count]]] = True
    return held_out_I


def check_held_out(held_out_I: Tensor, labels_I: Tensor, fold_C: Tensor) -> None:
    """Raise `UserError` where seen accuracy cannot be measured in every fold: it would count as 0, or not at all."""
    held_out_folds = set(fold_C[labels_I[held_out_I]].tolist())
    if len(held_out_folds) < 2:
        raise UserError(
            "must have two labelled images of some seen classes, or a validation split: seen accuracy is measured "
            f"on images that were not trained on; got {int(held_out_I.sum())} such images of {len(labels_I)}",
            option="benchmark",
        )
