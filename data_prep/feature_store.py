"""A cache of CLIP features on disk, and the tensors read back from it.

Shapes: R rotations, C classes, I images, D CLIP dimension, P templates, N graph nodes, E edges.

A cache is one folder, local or behind a URI; its manifest is written last, and without one it does not exist:

    manifest.json         fingerprint, what it was computed from, SHA-256 of every other file
    classes.parquet       class_id, name, wnid, unseen (one bool per rotation), in_target (cross-dataset only)
    source.parquet        key, split, feature                 (and target.parquet)
    source_labels.parquet key, label                          (and target_labels.parquet)
    names.parquet         class_id, template, text, feature
    nodes.parquet         node, wnid, class_id, depth, lemmas
    node_texts.parquet    node, lemma, template, text, feature
    edges.parquet         child, parent, relation
    similarity.parquet    path, wup: one row of the (C, C) tables per class
    source_tokens.parquet key, tokens: features of image patches (option tokens), and target_tokens.parquet
    rejected.parquet      key, domain, path, reason of images that cannot be read, if there are any

Target labels are a file of their own, of which `load` only hashes the bytes: nothing that trains or selects can see
them.
"""

import hashlib
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import normalize

from data_prep.errors import UserError
from data_prep.manifest import Manifest, read_manifest
from data_prep.parquet import matrix
from data_prep.scratch import features_sha256, open_scratch
from data_prep.storage import Storage, join, locate

SPLITS = ("train", "val", "test")

MAPPED_BYTES = 2**29
"""Features that take as much in float32 are not read into memory: `load` maps them in float16."""

_of_older_caches: dict[str, str] = {}
"""SHA-256 of a file's features by that of the file, where the manifest, of an earlier version, does not state it."""


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """The classes of a benchmark, in the order of their ids."""

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
    """(I, D), L2-normalised: float32, or of a large table a read-only map of the float16 that is stored."""
    split_I: Tensor
    """int8 (I,): index into SPLITS."""
    keys: pa.ChunkedArray
    """(I,) stable image ids, unique in the benchmark; strings of Arrow, a fifth of Python's in memory."""
    rows_I: Tensor | None = None
    """int64 (I,): rows of the cache's table that these are; None: all of it."""


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
    """float32 (C, C), Wu-Palmer, 1 on the diagonal, 0 between unconnected classes."""


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Everything a study needs of one benchmark and one checkpoint, but for the target labels."""

    benchmark: str
    """Name as `FeatureOptions` takes it."""
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
    """What of the published benchmark is missing (`allow_partial`); "" if it is complete."""
    rejected: int = 0
    """Images left out because they cannot be read."""


def _folder(cache: str | Path) -> Storage:
    return locate(cache, option="")


def _open(folder: Storage, manifest: Manifest, name: str) -> pa.NativeFile:
    """Open a file of the cache, after checking that it is, byte for byte, the one its manifest was written for."""
    path = join(folder.shown, name)
    try:
        file = folder.open(name)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; delete {folder.shown} and it is built again") from None
    if hashlib.file_digest(file, "sha256").hexdigest() != manifest.files.get(name):  # type: ignore[arg-type]
        with file:
            raise UserError(f"{path} {_what_differs(file, manifest)}; delete {folder.shown} and it is built again")
    file.seek(0)
    return file


def _read(folder: Storage, manifest: Manifest, name: str) -> pa.Table:
    with _open(folder, manifest, name) as file:
        return pq.read_table(file)


def _what_differs(file: pa.NativeFile, manifest: Manifest) -> str:
    try:
        file.seek(0)
        other = (pq.read_metadata(file).metadata or {}).get(b"fingerprint", b"").decode()
    except (pa.ArrowException, OSError):
        return "is truncated or no Parquet file"
    if other and other != manifest.fingerprint:
        return f"belongs to other features (fingerprint {other[:12]}, not {manifest.fingerprint[:12]})"
    return "was altered after it was written (its SHA-256 is not the manifest's)"


def verify(cache: str | Path) -> dict[str, str]:
    """Check every file of a cache, target labels included; return name -> SHA-256. Raises UserError as `load` does."""
    manifest, folder = read_manifest(cache), _folder(cache)
    for name in manifest.files:
        _open(folder, manifest, name).close()
    return dict(manifest.files)


def read_cache_table(cache: str | Path, name: str) -> pa.Table:
    """Read one table of a cache, such as "names". Raises UserError as `load` does."""
    return _read(_folder(cache), read_manifest(cache), f"{name}.parquet")


def mapped(cache: str | Path, name: str, scratch: str | Path | None = None) -> np.ndarray:
    """Map features of a domain, float16 (I, D), or of its patches ("source_tokens"), float16 (I, P, D), read-only.

    The Parquet file becomes an array file on this node once, a row group at a time; every process maps that same file,
    so that the node's memory holds the features once, however many read them. Unlike those of `load` they are as
    stored, normalised before the rounding to float16.
    scratch: where the user's folder of array files lies; $ZEROSWEEP_SCRATCH, or the folder of temporary files. An array
    is used where its SHA-256 is the manifest's.
    Raises UserError as `load` does, and where the folder of array files is open to others.
    """
    manifest, folder = read_manifest(cache), _folder(cache)
    file = f"{name}.parquet"
    if file not in manifest.files:
        raise UserError(f"{folder.shown} has no {name}: it was built without tokens")
    sha256 = manifest.arrays.get(file) or _array_sha256(folder, manifest, file)
    array_file = f"{manifest.files[file]}.npy"  # by content: it cannot be out of date
    with open_scratch(Path(scratch or os.environ.get("ZEROSWEEP_SCRATCH") or tempfile.gettempdir())) as arrays:
        array_ID = arrays.map(array_file, sha256)
        if array_ID is None:
            with arrays.lock(array_file):
                array_ID = arrays.map(array_file, sha256)  # another process may have written it meanwhile
                if array_ID is None:
                    with _open(folder, manifest, file) as stream:
                        arrays.write(array_file, pq.ParquetFile(stream, pre_buffer=False))
                    array_ID = arrays.map(array_file, sha256)
    if array_ID is None:
        raise UserError(
            f"{join(folder.shown, file)} holds other features than its manifest says; "
            f"delete {folder.shown} and it is built again"
        )
    if not name.endswith("_tokens"):
        return array_ID
    with folder.open(f"{name.removesuffix('_tokens')}.parquet") as images:
        width = pq.read_schema(images).field("feature").type.list_size
    return array_ID.reshape(len(array_ID), -1, width)


def _array_sha256(folder: Storage, manifest: Manifest, name: str) -> str:
    """Return the SHA-256 of a file's features where the manifest does not state it: read from the file, once."""
    known = manifest.files[name]
    if known not in _of_older_caches:
        with _open(folder, manifest, name) as stream:
            _of_older_caches[known] = features_sha256(pq.ParquetFile(stream, pre_buffer=False))
    return _of_older_caches[known]


def load(cache: str | Path) -> FeatureSet:
    """Read a cache into tensors; the target labels stay unread. Large features become a map, see `mapped`.

    Raises UserError, naming the file, if the folder is no complete cache or a file is missing, truncated or altered:
    also one that is not read here, such as the target labels, so that this is known before a search. Tokens are checked
    where they are mapped.
    """
    manifest, folder = read_manifest(cache), _folder(cache)
    inputs = manifest.inputs
    for name in manifest.files.keys() & {"target_labels.parquet", "rejected.parquet"}:
        _open(folder, manifest, name).close()

    def read(name: str) -> pa.Table:
        return _read(folder, manifest, f"{name}.parquet")

    classes, nodes, similarity = read("classes"), read("nodes"), read("similarity")
    templates = tuple(inputs["templates"])
    names_ = normalize(_tensor(matrix(read("names")["feature"])), dim=-1)
    class_ids = nodes["class_id"].to_pylist()
    node_of = {class_id: node for node, class_id in enumerate(class_ids) if class_id is not None}
    edges = read("edges")
    return FeatureSet(
        benchmark=manifest.benchmark,
        clip=manifest.clip,
        fingerprint=manifest.fingerprint,
        logit_scale=manifest.logit_scale,
        templates=templates,
        classes=ClassTable(
            names=tuple(classes["name"].to_pylist()),
            wnids=tuple(classes["wnid"].to_pylist()),
            unseen_RC=torch.tensor(classes["unseen"].to_pylist(), dtype=torch.bool).T.contiguous(),
            target_C=torch.tensor(classes["in_target"].to_pylist()) if "in_target" in classes.column_names else None,
        ),
        source=_image_table(folder, manifest, "source"),
        target=_image_table(folder, manifest, "target"),
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
        partial=manifest.partial,
        rejected=manifest.rejected,
    )


def load_target_labels(cache: str | Path, target: ImageTable | None = None) -> Tensor:
    """Read class ids, int64 (I_target,), in the order of `FeatureSet.target`: for the final test and oracles only.

    -1 where an image has no label. `target`: the images whose labels are wanted, where they are a part of the cache's.
    """
    labels_T = torch.tensor(read_cache_table(cache, "target_labels")["label"].to_numpy())
    return labels_T if target is None or target.rows_I is None else labels_T[target.rows_I]


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _image_table(folder: Storage, manifest: Manifest, name: str) -> ImageTable:
    with _open(folder, manifest, f"{name}.parquet") as stream:
        file = pq.ParquetFile(stream, pre_buffer=False)
        large = 4 * file.metadata.num_rows * file.schema_arrow.field("feature").type.list_size >= MAPPED_BYTES
        table = file.read(columns=["key", "split"] if large else None)
    if large:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to it
            features_ID = torch.from_numpy(mapped(folder.shown, name))
    else:  # normalised again, because rounding to float16 moves lengths by up to 5e-4
        features_ID = normalize(_tensor(matrix(table["feature"])), dim=-1)
    return ImageTable(
        features_ID=features_ID,
        split_I=torch.tensor(table["split"].to_numpy()),
        keys=table["key"],
    )


def _mean_by_node(texts: pa.Table, nodes: int) -> Tensor:
    features_TD = normalize(_tensor(matrix(texts["feature"])), dim=-1)
    sums_ND = torch.zeros(nodes, features_TD.shape[1])
    sums_ND.index_add_(0, torch.tensor(texts["node"].to_numpy()), features_TD)
    return normalize(sums_ND, dim=-1)
