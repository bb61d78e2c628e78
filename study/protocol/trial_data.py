"""What trials may see: the wall in front of target labels and of labels of unseen classes.

A trial receives `TrialData` and nothing else. It is built without target labels and without a single image or label
of an unseen class, so the code that trains and scores trials cannot reach them. Folds of the *seen* classes play the
unseen ones in turn; their H, and how much the predictions tell about unlabelled target images, rank configurations.

Suffixes: I source images, T target images, C classes, D CLIP dimension, N graph nodes, E edges, F folds, L lanes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data_prep.errors import UserError
from data_prep.feature_store import FeatureSet, mapped
from models.sre_clip import ClassGraph
from study.protocol.folds import check_held_out, class_folds, held_out
from study.protocol.task import AllClasses, CompetingClasses, competing_classes

Select = Literal["pseudo-unseen", "oracle"]


@dataclass(frozen=True, kw_only=True)
class InCache:
    """A stand-in for features that every node maps for itself: float16, once for all processes there."""

    cache: str
    """Folder or URI of the feature cache, which all nodes see."""
    name: str
    """Its table."""


@dataclass(frozen=True, kw_only=True)
class TrialData:
    """Everything that the code which trains and scores trials can see."""

    source_features_ID: Tensor
    """Labelled source images of SEEN classes only, L2-normalised: float32, or float16 as stored (`unit_features`)."""
    source_labels_I: Tensor
    """Their classes, int64."""
    held_out_I: Tensor
    """Bool: not trained on while configurations are selected; they measure seen accuracy."""
    refit_I: Tensor | None = None
    """Bool: what refits train on, where that is not all of the source."""
    target_features_TD: Tensor
    """Unlabelled target images, L2-normalised: float32, or float16 as stored."""
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
    template: str = "a photo of a {}"
    """The benchmark's own prompt (its first), for methods that learn prompts."""
    competing: CompetingClasses = AllClasses()
    """Which classes compete for an image."""
    clip_path: str = ""
    """Folder or hub id of the checkpoint, for methods that learn prompts: they train through its text encoder."""
    reference_T: Tensor | None = None
    """Pseudo-labels of the target images by methods that train nothing, where the criterion compares with them."""
    oracle_labels_T: Tensor | None = None
    """Target labels, present in `--select oracle` studies only."""

    @property
    def folds(self) -> int:
        return int(self.fold_C.max()) + 1

    @property
    def graph(self) -> ClassGraph:
        """Return the text side, as the models take it."""
        return ClassGraph(
            name_features_CD=self.name_features_CD,
            node_features_ND=self.node_features_ND,
            class_node_C=self.class_node_C,
            edges_E2=self.edges_E2,
            logit_scale=self.logit_scale,
        )

    def to_arrays(self) -> dict[str, Any]:
        """Return numpy arrays and scalars, which Ray's object store shares between actors without copies.

        `in_cache` says what may take the place of large ones.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v.contiguous().numpy() if isinstance(v, Tensor) else v for k, v in values.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "TrialData":
        """Return trial data from `to_arrays`; tensors share the (read-only) arrays' memory."""
        arrays = {k: mapped(v.cache, v.name) if isinstance(v, InCache) else v for k, v in arrays.items()}
        values: dict[str, Any] = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in arrays.items()}
        return cls(**values)

    def to(self, device: torch.device | str) -> "TrialData":
        """Return the same data on a device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {k: v.to(device) if isinstance(v, Tensor | CompetingClasses) else v for k, v in values.items()}
        return TrialData(**values)


def check_rotation(rotation: int, rotations: int, benchmark: str) -> None:
    """Raise `UserError` where a benchmark has no such rotation."""
    if not 0 <= rotation < rotations:
        raise UserError(f"must be 0 to {rotations - 1} or all for {benchmark}, got {rotation}", option="rotation")


def trial_data(features: FeatureSet, *, rotation: int, folds: int, seed: int, clip_path: str = "") -> TrialData:
    """Return the part of a benchmark that trials may see in one rotation.

    `clip_path`: folder or hub id of the checkpoint, for methods that learn prompts.

    Raises `UserError` if the rotation does not exist or a fold would leave fewer than two classes on either side.
    """
    check_rotation(rotation, features.classes.unseen_RC.shape[0], features.benchmark)
    seen_C = ~features.classes.unseen_RC[rotation]
    allowed_I = seen_C[features.source_labels_I]
    labels_I, source_ID = features.source_labels_I[allowed_I], features.source.features_ID
    split_I = features.source.split_I[allowed_I]
    held_out_I = held_out(split_I, labels_I, seed)
    fold_C = class_folds(features, seen_C, folds=folds, seed=seed)
    check_held_out(held_out_I, labels_I, fold_C)
    return TrialData(
        # all of a large table as the map that it is: rows picked from it are a copy in memory
        source_features_ID=source_ID if allowed_I.all() else source_ID[allowed_I],
        source_labels_I=labels_I,
        held_out_I=held_out_I,
        # published base-to-novel and cross-dataset numbers train on the drawn shots, not on those for validation
        refit_I=split_I != 1 if features.halves or features.classes.target_C is not None else None,
        target_features_TD=features.target.features_ID,
        seen_C=seen_C,
        fold_C=fold_C,
        name_features_CD=torch.nn.functional.normalize(features.name_features_CPD.mean(1), dim=-1),
        node_features_ND=features.node_features_ND,
        class_node_C=features.graph.class_node_C,
        edges_E2=features.graph.edges_E2,
        logit_scale=features.logit_scale,
        fingerprint=features.fingerprint,
        class_names=features.classes.names,
        template=features.templates[0],
        competing=competing_classes(halves=features.halves, target_C=features.classes.target_C),
        clip_path=clip_path,
    )


def in_cache(data: TrialData, features: FeatureSet, cache: str) -> dict[str, InCache]:
    """Return the stand-ins for mapped features in `data.to_arrays()`, where all nodes see the cache.

    Only of tables without images of unseen classes: what a trial maps it can look at.
    """
    tables = {"source_features_ID": ("source", features.source), "target_features_TD": ("target", features.target)}
    return {
        field: InCache(cache=cache, name=name)
        for field, (name, table) in tables.items()
        if table.features_ID.dtype == torch.float16 and getattr(data, field) is table.features_ID
    }


def oracle_data(data: TrialData, target_labels_T: Tensor) -> TrialData:
    """Return trial data that also hold the test labels: for an upper bound, never for a result."""
    return replace(data, oracle_labels_T=target_labels_T)


def seen_classes(data: TrialData, fold: int | None) -> Tensor:
    """Return (C,) bool: the classes that a lane may know of; the classes of its fold play unseen ones."""
    return data.seen_C if fold is None else data.seen_C & (data.fold_C != fold)


def trainable_images(data: TrialData, fold: int | None) -> Tensor:
    """Return (I,) bool: the source images that a lane may train on; without a fold those of refits (and the oracle)."""
    if fold is None:
        return torch.ones_like(data.held_out_I) if data.refit_I is None else data.refit_I
    return seen_classes(data, fold)[data.source_labels_I] & ~data.held_out_I


def scored_images(data: TrialData, fold: int) -> Tensor:
    """Return (I,) bool: held-out images of a fold's seen classes and all images of its pseudo-unseen classes."""
    return data.held_out_I | (data.fold_C == fold)[data.source_labels_I]
