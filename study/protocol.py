"""What selection may look at, how it is scored, and how the final test is scored.

A trial receives `TrialData` and nothing else. It is built without target labels and without a single image or label
of an unseen class, so the code that trains and scores trials cannot reach them. Folds of the *seen* classes play the
unseen ones in turn; their H, and how much the predictions tell about unlabelled target images, rank configurations.

Suffixes: I source images, T target images, C classes, D CLIP dimension, N graph nodes, E edges, F folds, L lanes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from data_prep.feature_store import FeatureSet, mapped
from models.sre_clip import ClassGraph
from models.sweeps import harmonic_mean

Select = Literal["pseudo-unseen", "oracle"]

MUTUAL_INFORMATION_WEIGHT = 0.15
"""Weight of the target's mutual information beside H in the selection score; how it was found stands in the README."""

HELD_OUT_SHARE = 0.2
"""Share of source images per class held out where a benchmark has no validation split."""


@dataclass(frozen=True, kw_only=True)
class InCache:
    """Stands for features that every node maps for itself: float16, once for all processes there."""

    cache: str
    """Folder or URI of the feature cache, which all nodes see."""
    name: str
    """Its table."""


@dataclass(frozen=True, kw_only=True)
class TrialData:
    """All that the code which trains and scores trials can see."""

    source_features_ID: Tensor
    """Labelled source images of SEEN classes only, L2-normalised: float32, or float16 as stored (see `unit`)."""
    source_labels_I: Tensor
    """Their classes, int64."""
    held_out_I: Tensor
    """Bool: not trained on while configurations are selected; they measure seen accuracy."""
    target_features_TD: Tensor
    """Unlabelled target images, likewise."""
    seen_C: Tensor
    """Bool: classes with labels."""
    fold_C: Tensor
    """Int64: the fold in which a seen class plays an unseen one, -1 for unseen classes."""
    name_features_CD: Tensor
    """Text feature of each class name (template ensemble)."""
    node_features_ND: Tensor
    """Text feature of each WordNet node."""
    class_node_C: Tensor
    """Node of each class."""
    edges_E2: Tensor
    """Hypernym edges, child and parent node."""
    logit_scale: float
    """CLIP's exp(logit scale)."""
    fingerprint: str
    """Fingerprint of the feature cache."""
    class_names: tuple[str, ...] = ()
    """Names of all classes, for methods that learn prompts."""
    target_C: Tensor | None = None
    """Bool: the classes among which target images are classified (cross-dataset); None: all."""
    halves: bool = False
    """Base-to-novel: images are classified among seen or unseen classes, whichever their own is of."""
    clip_path: str = ""
    """Folder or hub id of the checkpoint, for methods that learn prompts: they train through its text encoder."""
    oracle_labels_T: Tensor | None = None
    """Target labels, present in `--select oracle` studies only."""

    @property
    def folds(self) -> int:
        return int(self.fold_C.max()) + 1

    @property
    def apart(self) -> bool:
        """Whether seen and unseen classes never compete for an image: base-to-novel and cross-dataset."""
        return self.halves or self.target_C is not None

    @property
    def graph(self) -> ClassGraph:
        """The text side, as the models take it."""
        return ClassGraph(
            name_features_CD=self.name_features_CD,
            node_features_ND=self.node_features_ND,
            class_node_C=self.class_node_C,
            edges_E2=self.edges_E2,
            logit_scale=self.logit_scale,
        )

    def to_arrays(self) -> dict[str, Any]:
        """Numpy arrays and scalars: what Ray's object store shares between actors without copies.

        `in_cache` says what may take the place of large ones.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v.contiguous().numpy() if isinstance(v, Tensor) else v for k, v in values.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "TrialData":
        """The inverse of `to_arrays`; tensors share the (read-only) arrays' memory."""
        arrays = {k: mapped(v.cache, v.name) if isinstance(v, InCache) else v for k, v in arrays.items()}
        values: dict[str, Any] = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in arrays.items()}
        return cls(**values)

    def to(self, device: torch.device | str) -> "TrialData":
        """The same data on a device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        return TrialData(**values)


def trial_data(features: FeatureSet, *, rotation: int, folds: int, seed: int, clip_path: str = "") -> TrialData:
    """What trials may see of a benchmark in one rotation; `clip_path` is needed by methods that learn prompts.

    Raises `ValueError` if the rotation does not exist or a fold would leave fewer than two classes on either side.
    """
    rotations = features.classes.unseen_RC.shape[0]
    if not 0 <= rotation < rotations:
        raise ValueError(f"--rotation must be 0 to {rotations - 1} or all for {features.benchmark}, got {rotation}")
    seen_C = ~features.classes.unseen_RC[rotation]
    allowed_I = seen_C[features.source_labels_I]
    labels_I, source_ID = features.source_labels_I[allowed_I], features.source.features_ID
    return TrialData(
        # all of a large table as the map that it is: rows picked from it are a copy in memory
        source_features_ID=source_ID if allowed_I.all() else source_ID[allowed_I],
        source_labels_I=labels_I,
        held_out_I=_held_out(features.source.split_I[allowed_I], labels_I, seed),
        target_features_TD=features.target.features_ID,
        seen_C=seen_C,
        fold_C=class_folds(features, seen_C, folds=folds, seed=seed),
        name_features_CD=torch.nn.functional.normalize(features.name_features_CPD.mean(1), dim=-1),
        node_features_ND=features.node_features_ND,
        class_node_C=features.graph.class_node_C,
        edges_E2=features.graph.edges_E2,
        logit_scale=features.logit_scale,
        fingerprint=features.fingerprint,
        class_names=features.classes.names,
        target_C=features.classes.target_C,
        halves=features.halves,
        clip_path=clip_path,
    )


def in_cache(data: TrialData, features: FeatureSet, cache: str) -> dict[str, InCache]:
    """What takes the place of mapped features in `data.to_arrays()`, where all nodes see the cache.

    Only of tables without images of unseen classes: what a trial maps it can look at.
    """
    tables = {"source_features_ID": ("source", features.source), "target_features_TD": ("target", features.target)}
    return {
        field: InCache(cache=cache, name=name)
        for field, (name, table) in tables.items()
        if table.features_ID.dtype == torch.float16 and getattr(data, field) is table.features_ID
    }


def oracle_data(data: TrialData, target_labels_T: Tensor) -> TrialData:
    """Trial data that also holds the test labels: an upper bound, never a result."""
    return replace(data, oracle_labels_T=target_labels_T)


def class_folds(features: FeatureSet, seen_C: Tensor, *, folds: int, seed: int) -> Tensor:
    """Fold (C,) int64 of every seen class, -1 for unseen ones; the folds' sizes differ by at most one.

    Every unseen class is related to some seen ones, so pseudo-unseen classes have to be, too: each class goes to the
    emptiest fold that holds few of its WordNet neighbours, closest pairs first, and its relatives stay in the others.
    """
    classes = torch.nonzero(seen_C).flatten().tolist()
    if folds < 2 or len(classes) < 2 * folds or len(classes) - math.ceil(len(classes) / folds) < 2:
        raise ValueError(f"--folds must be at least 2 with two seen classes in each; got {folds} for {len(classes)}")
    similarity = features.graph.path_similarity_CC[classes][:, classes].fill_diagonal_(0).numpy()
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


def _held_out(split_I: Tensor, labels_I: Tensor, seed: int) -> Tensor:
    """The validation split, or a seeded share of every class where there is none."""
    if (split_I == 1).any():
        return split_I == 1
    rank_I = torch.rand(len(labels_I), generator=torch.Generator().manual_seed(seed))
    held_out_I = torch.zeros(len(labels_I), dtype=torch.bool)
    for c in labels_I.unique():
        of_class = torch.nonzero(labels_I == c).flatten()
        held_out_I[of_class[rank_I[of_class].argsort()[: round(HELD_OUT_SHARE * len(of_class))]]] = True
    return held_out_I


# --- scores ---------------------------------------------------------------------------------------------------------


def class_accuracy(predictions_LT: Tensor, labels_T: Tensor, num_classes: int) -> Tensor:
    """Accuracy per class (L, C), NaN for classes without images."""
    count_C = torch.bincount(labels_T, minlength=num_classes)
    sums_LC = torch.zeros(predictions_LT.shape[0], num_classes, device=labels_T.device)
    return sums_LC.index_add_(1, labels_T, (predictions_LT == labels_T).float()) / count_C  # 0 / 0 = NaN


def within_halves(classify: Callable[[Tensor], Tensor], labels_I: Tensor, seen_KC: Tensor) -> Tensor:
    """Classes (K, I) of images, each among the seen or the unseen ones, whichever its own is of.

    `classify`: predicted classes (K, I) among the classes of a mask (K, C).
    """
    return torch.where(seen_KC[:, labels_I], classify(seen_KC), classify(~seen_KC))


def seen_unseen(predictions_LT: Tensor, labels_T: Tensor, seen_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S, U (mean per-class accuracies over seen and unseen classes that have images, 0 where none has) and H, (L,)."""
    accuracy_LC = class_accuracy(predictions_LT, labels_T, len(seen_C))
    seen_L = accuracy_LC[:, seen_C].nanmean(1).nan_to_num()
    unseen_L = accuracy_LC[:, ~seen_C].nanmean(1).nan_to_num()
    return seen_L, unseen_L, _joint(seen_L, unseen_L, seen_C[labels_T])


def _joint(seen: Tensor, unseen: Tensor, known_T: Tensor) -> Tensor:
    """H of the accuracies on seen and unseen classes; the accuracy there is where all images are of one kind."""
    if known_T.all():
        return seen
    return harmonic_mean(seen, unseen) if known_T.any() else unseen


def evaluate(predictions_LT: Tensor, labels_T: Tensor, seen_C: Tensor) -> list[dict[str, float]]:
    """Test metrics of every lane's predicted classes: known/unknown/all micro accuracy, S, U per class, and H.

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
    """Mean H difference to a baseline and its 95 % interval over test images.

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


def _h_gains(tests: Sequence[tuple[Tensor, Tensor, Tensor]], labels_G: Tensor, weights_SG: Tensor) -> Tensor:
    """H difference (S,) under each row of weights of kinds of images, mean over seeds and then over rotations.

    `tests`: as in `paired_bootstrap`, but 1.0 where a prediction is right, (seeds, G).
    """

    def by_class(weights_SG: Tensor) -> Tensor:
        sums_SC = torch.zeros(len(weights_SG), len(tests[0][2]))
        return sums_SC.scatter_add_(1, labels_G.expand(len(weights_SG), -1), weights_SG)

    count_SC = by_class(weights_SG)

    def mean_h(right_LG: Tensor, seen_C: Tensor) -> Tensor:
        accuracies = (by_class(weights_SG * right_G) / count_SC for right_G in right_LG)
        known_G = seen_C[labels_G]
        return torch.stack(
            [_joint(a_SC[:, seen_C].nanmean(1), a_SC[:, ~seen_C].nanmean(1), known_G) for a_SC in accuracies]
        ).mean(0)

    gains = [mean_h(method_LG, seen_C) - mean_h(baseline_LG, seen_C) for method_LG, baseline_LG, seen_C in tests]
    return torch.stack(gains).mean(0)
