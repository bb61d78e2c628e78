"""A cache of CLIP features on disk, and the tensors read back from it.

Shapes: R rotations, C classes, I images, D CLIP dimension, P templates, N graph nodes, E edges.

A cache is one folder, complete or absent:

    manifest.json         fingerprint, what it was computed from, SHA-256 of every other file
    classes.parquet       class_id, name, wnid, unseen (one bool per rotation), in_target (cross-dataset only)
    source.parquet        key, split, feature                 the same for target.parquet
    source_labels.parquet key, label                          the same for target_labels.parquet
    names.parquet         class_id, template, text, feature
    nodes.parquet         node, wnid, class_id, depth, lemmas
    node_texts.parquet    node, lemma, template, text, feature
    edges.parquet         child, parent, relation
    similarity.parquet    path, wup: one row of the (C, C) tables per class

Target labels are a file of their own, which `load` does not open: nothing that trains or selects can see them.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import normalize

from data_prep.errors import UserError
from data_prep.parquet import file_sha256, matrix

SCHEMA_VERSION = 1  # raise it whenever the same inputs would give another cache: old caches are then not read
SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    names: tuple[str, ...]
    """(C,) class names as people say them."""
    wnids: tuple[str | None, ...]
    """(C,) WordNet 3.0 offsets such as "n02084071"; None for a class WordNet lacks."""
    unseen_RC: Tensor
    """bool (R, C): the unseen classes of every rotation; R = 1 where a benchmark has one fixed split."""
    target_C: Tensor | None = None
    """bool (C,): the classes among which test images are classified (cross-dataset); None: all."""


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """The images of one domain, without labels."""

    features_ID: Tensor
    """float32 (I, D), L2-normalised."""
    split_I: Tensor
    """int8 (I,): index into SPLITS."""
    keys: tuple[str, ...]
    """(I,) stable image ids, unique in the benchmark."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Class synsets, their hypernyms and auxiliary synsets."""

    node_wnids: tuple[str, ...]
    """(N,) a class outside WordNet has "class:<its name>"."""
    node_names: tuple[str, ...]
    """(N,) first lemma."""
    class_node_C: Tensor
    """int64 (C,): node of each class."""
    edges_E2: Tensor
    """int64 (E, 2): child, parent."""
    depth_N: Tensor
    """int64 (N,): edges on the shortest way up to a root."""
    path_similarity_CC: Tensor
    """float32 (C, C), 1 on the diagonal, 0 between unconnected classes."""
    wup_similarity_CC: Tensor
    """float32 (C, C), Wu-Palmer, likewise."""


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Everything a study needs of one benchmark and one checkpoint, but for the target labels."""

    benchmark: str
    """Name as given on the command line."""
    clip: str
    """Checkpoint: hub id, or the name of its folder."""
    fingerprint: str
    """Hex SHA-256 of everything the features were computed from."""
    logit_scale: float
    """Multiplier of cosines, already exponentiated (100 for the released CLIPs)."""
    templates: tuple[str, ...]
    """(P,) prompt templates; templates[0] is the single one."""
    classes: ClassTable
    """Names, wnids, unseen classes."""
    source: ImageTable
    """Labelled domain."""
    target: ImageTable
    """Unlabelled domain."""
    source_labels_I: Tensor
    """int64 (I_source,): class ids, those of unseen classes included: the protocol drops them."""
    name_features_CPD: Tensor
    """float32 (C, P, D): text features of class names, each L2-normalised."""
    node_features_ND: Tensor
    """float32 (N, D): mean over lemmas x templates of normalised text features, normalised again."""
    graph: Graph
    """WordNet around the classes."""
    halves: bool = False
    """Whether a test image is classified among the seen or the unseen classes, whichever its own is of."""
    partial: str = ""
    """What of the published benchmark is missing (--allow-partial); "" if it is complete."""


def fingerprint(inputs: dict[str, Any]) -> str:
    """Hex SHA-256 of `inputs` as canonical JSON."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_manifest(folder: Path, inputs: dict[str, Any], extra: dict[str, Any]) -> None:
    """Seal `folder`: its manifest states the inputs, their fingerprint, `extra`, and every Parquet file's SHA-256."""
    files = {path.name: file_sha256(path) for path in sorted(folder.glob("*.parquet"))}
    manifest = {"fingerprint": fingerprint(inputs), "inputs": inputs, **extra, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def read_manifest(cache: str | Path) -> dict[str, Any]:
    """The manifest of a complete cache.

    Raises UserError if there is none, it is unreadable, of another schema, or its fingerprint is not that of its
    inputs.
    """
    path = Path(cache) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        stated, inputs, _ = manifest["fingerprint"], manifest["inputs"], manifest["files"]
    except FileNotFoundError:
        raise UserError(f"{cache} is no feature cache: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete the folder and it is built again") from None
    if stated != fingerprint(inputs):
        raise UserError(f"{path} was altered: its fingerprint is not that of its inputs; delete the folder")
    if inputs["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{cache} has schema {inputs['schema_version']}, this version reads {SCHEMA_VERSION}; delete it"
        )
    return manifest


def _read(cache: Path, manifest: dict[str, Any], name: str) -> pa.Table:
    """One file of the cache, after checking that it is, byte for byte, the one its manifest was written for."""
    path = cache / name
    if not path.is_file():
        raise UserError(f"{path} is missing; delete {cache} and it is built again")
    if file_sha256(path) != manifest["files"].get(name):
        raise UserError(f"{path} {_what_differs(path, manifest)}; delete {cache} and it is built again")
    return pq.read_table(path)


def _what_differs(path: Path, manifest: dict[str, Any]) -> str:
    try:
        other = (pq.read_metadata(path).metadata or {}).get(b"fingerprint", b"").decode()
    except (pa.ArrowException, OSError):
        return "is truncated or no Parquet file"
    if other and other != manifest["fingerprint"]:
        return f"belongs to other features (fingerprint {other[:12]}, not {manifest['fingerprint'][:12]})"
    return "was altered after it was written (its SHA-256 is not the manifest's)"


def verify(cache: str | Path) -> dict[str, str]:
    """Check every file of a cache, target labels included; return name -> SHA-256. Raises UserError as `load` does."""
    manifest = read_manifest(cache)
    for name in manifest["files"]:
        _read(Path(cache), manifest, name)
    return dict(manifest["files"])


def load(cache: str | Path) -> FeatureSet:
    """Read a cache into tensors; the target labels stay unread.

    Raises UserError, naming the file, if the folder is no complete cache or a file is missing, truncated or altered.
    """
    cache = Path(cache)
    manifest = read_manifest(cache)
    inputs = manifest["inputs"]

    def read(name: str) -> pa.Table:
        return _read(cache, manifest, f"{name}.parquet")

    classes, nodes, similarity = read("classes"), read("nodes"), read("similarity")
    templates = tuple(inputs["templates"])
    names_ = normalize(_tensor(matrix(read("names")["feature"])), dim=-1)
    class_ids = nodes["class_id"].to_pylist()
    node_of = {class_id: node for node, class_id in enumerate(class_ids) if class_id is not None}
    edges = read("edges")
    return FeatureSet(
        benchmark=manifest["benchmark"],
        clip=manifest["clip"],
        fingerprint=manifest["fingerprint"],
        logit_scale=manifest["logit_scale"],
        templates=templates,
        classes=ClassTable(
            names=tuple(classes["name"].to_pylist()),
            wnids=tuple(classes["wnid"].to_pylist()),
            unseen_RC=torch.tensor(classes["unseen"].to_pylist(), dtype=torch.bool).T.contiguous(),
            target_C=torch.tensor(classes["in_target"].to_pylist()) if "in_target" in classes.column_names else None,
        ),
        source=_image_table(read("source")),
        target=_image_table(read("target")),
        source_labels_I=torch.tensor(read("source_labels")["label"].to_numpy()),
        name_features_CPD=names_.reshape(len(classes), len(templates), -1),
        node_features_ND=_mean_by_node(read("node_texts"), len(nodes)),
        graph=Graph(
            node_wnids=tuple(nodes["wnid"].to_pylist()),
            node_names=tuple(lemmas[0] for lemmas in nodes["lemmas"].to_pylist()),
            class_node_C=torch.tensor([node_of[c] for c in range(len(classes))]),
            edges_E2=torch.tensor(np.stack([edges["child"].to_numpy(), edges["parent"].to_numpy()], axis=1)),
            depth_N=torch.tensor(nodes["depth"].to_numpy()),
            path_similarity_CC=_tensor(matrix(similarity["path"])),
            wup_similarity_CC=_tensor(matrix(similarity["wup"])),
        ),
        halves=inputs.get("halves", False),
        partial=inputs.get("partial", ""),
    )


def load_target_labels(cache: str | Path) -> Tensor:
    """int64 (I_target,) class ids in the order of `FeatureSet.target`: for the final evaluation (and oracles) only."""
    manifest = read_manifest(cache)
    return torch.tensor(_read(Path(cache), manifest, "target_labels.parquet")["label"].to_numpy())


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _image_table(table: pa.Table) -> ImageTable:
    # Normalised again, because rounding to float16 moves lengths by up to 5e-4.
    return ImageTable(
        features_ID=normalize(_tensor(matrix(table["feature"])), dim=-1),
        split_I=torch.tensor(table["split"].to_numpy()),
        keys=tuple(table["key"].to_pylist()),
    )


def _mean_by_node(texts: pa.Table, nodes: int) -> Tensor:
    features_TD = normalize(_tensor(matrix(texts["feature"])), dim=-1)
    sums_ND = torch.zeros(nodes, features_TD.shape[1])
    sums_ND.index_add_(0, torch.tensor(texts["node"].to_numpy()), features_TD)
    return normalize(sums_ND, dim=-1)
