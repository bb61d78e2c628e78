"""Image features that exist already as a benchmark: "features:<path>".

<path> is a Parquet or npz file, or a folder with features.parquet or features.npz; `classes.csv` (see own_data.py) lies
beside it. Columns of the Parquet file, or arrays of the npz, in singular or plural:

    feature   (I, D) floats, of any length but 0: the image tower's output of the checkpoint given as `--clip`, which
              encodes the class texts
    label     class names as in classes.csv, or its rows counted from 0; "" or -1 of target images without a label
    domain    source (labelled) or target; other names need their roles said with `--source` and `--target`
    split     train, val or test, with or without domains
    key       a name for each image; the row's number if left out

Without a checkpoint: a file texts.npz beside classes.csv has the features that its text tower gave the class texts:

    features      (C, D) floats in the order of classes.csv, or (C, P, D) with a row for each of P prompts
    logit_scale   the multiplier of cosines, a number; 100 if left out, the limit to which CLIP trains it

Without domains, train and val are the labelled source and test scores the test. Without both, the images are those of
one domain without splits.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.benchmarks.base import DOMAINS, Benchmark, GivenTexts
from data_prep.benchmarks.own_data import (
    CLASSES,
    ROLES,
    SPLIT_NAMES,
    Row,
    deal_by_class,
    deal_roles,
    label_ids,
    make_benchmark,
    read_classes,
    said_roles,
)
from data_prep.errors import UserError, some_of
from data_prep.storage import reason

PREFIX = "features:"
FILES = ("features.parquet", "features.npz")
COLUMNS = ("feature", "label", "domain", "split", "key")
TEXTS = "texts.npz"
LOGIT_SCALE = 100.0
UNIT = 1e-2
"""Deviation from length 1 that rounding to 16 bits explains."""


def read(name: str, path: Path) -> Benchmark:
    """Read the benchmark "features:<path>". Raises UserError for whatever breaks the rules above."""
    place, *roles = str(path).split(ROLES)
    file = _file(Path(place))
    found = _columns(file)
    features_ID = found["feature"]
    classes = read_classes(file.parent / CLASSES)
    keys = [str(key) for key in found["key"]] if "key" in found else [f"{i:08d}" for i in range(len(features_ID))]
    if len(counts := Counter(keys)) < len(keys):
        raise UserError(f"{file}: key must be unique; {counts.most_common(1)[0][0]!r} is there twice")
    labels = label_ids(found["label"], classes.names, str(file))
    splits = _splits(found, file)
    domains = _domains(found, splits, roles, file)
    dealt = splits if splits is not None else deal_by_class(keys, labels, domains)
    data = [feature.tobytes() for feature in features_ID]
    rows: list[Row] = [
        (key, label, domain, split, None, content)
        for key, label, domain, split, content in zip(keys, labels, domains, dealt, data, strict=True)
    ]
    if "domain" not in found and splits is None:
        rows = deal_roles(rows, classes.seen)
    slug = f"features-{file.parent.name if file.name in FILES else file.stem}"
    notes = [*_lengths(features_ID, "features"), *_left_out(found, domains)]
    texts = None
    if (file.parent / TEXTS).is_file():
        texts = _texts(file.parent / TEXTS, len(classes.names), features_ID.shape[1])
    return make_benchmark(name, slug, classes, rows, holds_features=True, texts=texts, notes=notes)


def _file(path: Path) -> Path:
    files = [path / name for name in FILES if (path / name).is_file()] if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file() or files[0].suffix not in (".parquet", ".npz"):
        found = " and ".join(file.name for file in files) if len(files) > 1 else "none"
        raise UserError(
            f"must be {PREFIX}PATH of a Parquet or npz file, or of a folder with one of {', '.join(FILES)}; "
            f"{path} is {'a folder with ' + found if path.is_dir() else 'no such file'}",
            option="benchmark",
        )
    return files[0].resolve()


def _columns(file: Path) -> dict[str, Any]:
    """Return the columns under their singular names; the feature as float32 (I, D). Raises UserError."""
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                given = {name: arrays[name] for name in arrays.files if name.removesuffix("s") in COLUMNS}
            names = list(given)
        else:
            names = pq.read_schema(file).names
            table = pq.read_table(file, columns=[name for name in names if name.removesuffix("s") in COLUMNS])
            given = {column: _values(table[column]) for column in table.column_names}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    found = {name.removesuffix("s"): values for name, values in given.items()}
    if missing := [name for name in ("feature", "label") if name not in found]:
        raise UserError(f"{file} must have {' and '.join(missing)}; found {some_of(names) or 'nothing'}")
    features_ID = found["feature"]
    if features_ID.ndim != 2 or features_ID.dtype.kind != "f" or not features_ID.size:
        shape = " x ".join(map(str, features_ID.shape))
        raise UserError(f"{file}: feature must be floats, images x dimension; got {features_ID.dtype}, {shape}")
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{file}: all arrays must have a row for each image; got {lengths}")
    return found | {"feature": features_ID.astype(np.float32)}


def _values(column: pa.ChunkedArray) -> np.ndarray:
    values = column.combine_chunks()
    is_fixed = pa.types.is_fixed_size_list(values.type)
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or is_fixed):
        return np.asarray(values.to_pylist())
    if values.null_count or not len(values):
        raise UserError(f"feature must be there in every row; {values.null_count} of {len(values)} are null")
    flat = values.flatten().to_numpy(zero_copy_only=False)
    if len(flat) % len(values) or (not is_fixed and len(set(values.value_lengths().to_pylist())) > 1):
        raise UserError("feature must have the same dimension in every row")
    return flat.reshape(len(values), -1)


def _splits(found: dict[str, Any], file: Path) -> list[int] | None:
    if "split" not in found:
        return None
    said = [str(split).lower() for split in found["split"]]
    if unknown := sorted(set(said) - SPLIT_NAMES.keys()):
        raise UserError(f"{file}: split must be one of {', '.join(SPLIT_NAMES)}; got {some_of(unknown)}")
    return [SPLIT_NAMES[split] for split in said]


def _domains(found: dict[str, Any], splits: list[int] | None, roles: list[str], file: Path) -> list[str]:
    """Return the domain of every image, by its name, by its split, or source. Raises UserError."""
    if "domain" not in found:
        if roles:
            raise UserError(f"must be left out: {file} has no column domain", option="source")
        return [DOMAINS[split == 2] for split in splits] if splits is not None else ["source"] * len(found["feature"])
    said = [str(domain) for domain in found["domain"]]
    names = sorted(set(said))
    role_of = said_roles(roles, names, f"domain of {file}") if roles else dict(zip(DOMAINS, DOMAINS, strict=True))
    if set(names) - role_of.keys() and not roles:
        raise UserError(
            f"{file}: domain must be source or target; found {some_of(names)}: say which is which with "
            f"--source NAME --target NAME"
        )
    return [role_of.get(domain, "") for domain in said]  # "": of a third domain, left out


def _texts(file: Path, classes: int, dimension: int) -> GivenTexts:
    """Return the class texts' features of a file. Raises UserError."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            given = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from error
    features = given.get("features")
    if features is None:
        raise UserError(f"{file} must have features; found {some_of(list(given)) or 'nothing'}")
    shape = features.shape[:1] + features.shape[-1:]
    if features.ndim not in (2, 3) or features.dtype.kind != "f" or shape != (classes, dimension) or not features.size:
        got = f"{features.dtype}, {' x '.join(map(str, features.shape))}"
        raise UserError(
            f"{file}: features must be floats, {classes} classes x {dimension} (the dimension of the images' "
            f"features), or classes x prompts x {dimension}; got {got}"
        )
    features_CPD = features.reshape(classes, -1, dimension).astype(np.float32)
    length_CP1 = np.linalg.norm(features_CPD, axis=2, keepdims=True)
    if not np.isfinite(length_CP1).all() or not length_CP1.all():
        row = int(np.flatnonzero(~(np.isfinite(length_CP1) & (length_CP1 > 0)).all((1, 2)))[0])
        raise UserError(f"{file}: features must be finite and not 0; those of row {row} are not")
    scale = np.asarray(given.get("logit_scale", LOGIT_SCALE))
    if scale.size != 1 or scale.dtype.kind not in "fiu" or not 0 < scale.item() < np.inf:
        raise UserError(f"{file}: logit_scale must be a number over 0; got {scale}")
    said = f"logit_scale {scale.item():g}" + ("" if "logit_scale" in given else ", as none is given")
    return GivenTexts(
        path=file,
        features_CPD=features_CPD / length_CP1,
        logit_scale=float(scale.item()),
        notes=(
            f"class texts: {features_CPD.shape[1]} of each class from {TEXTS}, {said}. Without a text tower WordNet's "
            "nodes have no features: a graph has no edges, and folds go by the similarity of the texts",
            *_lengths(features_CPD.reshape(-1, dimension), "text features"),
        ),
    )


def _lengths(features_ID: np.ndarray, what: str) -> list[str]:
    length_I = np.linalg.norm(features_ID, axis=1)
    others_I = np.isfinite(length_I) & (abs(length_I - 1) > UNIT)
    if not others_I.any():
        return []
    low, high = length_I[others_I].min(), length_I[others_I].max()
    return [f"{others_I.sum()} of {len(length_I)} {what} are {low:.3g} to {high:.3g} long: each is scaled to length 1"]


def _left_out(found: dict[str, Any], domains: Sequence[str]) -> list[str]:
    others = Counter(str(found["domain"][i]) for i, domain in enumerate(domains) if not domain)
    return [f"left out: {count} images of domain {name}" for name, count in sorted(others.items())]
