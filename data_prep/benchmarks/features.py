"""Image features that exist already as a benchmark: "features:<path>".

<path> is a Parquet or npz file, or a folder with features.parquet or features.npz; `classes.csv` (see own_data.py) lies
beside it. Columns of the Parquet file, or arrays of the npz, in singular or plural:

    feature   (I, D) floats, of any length but 0: the image tower's output of the checkpoint given as `--clip`, which
              encodes the class texts
    label     class names as in classes.csv, or its rows counted from 0
    domain    source (labelled) or target; other names need their roles said with `--source` and `--target`
    split     train, val or test, with or without domains
    key       a name for each image; the row's number if left out

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

from data_prep.benchmarks.base import DOMAINS, Benchmark
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

PREFIX = "features:"
FILES = ("features.parquet", "features.npz")
COLUMNS = ("feature", "label", "domain", "split", "key")
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
    notes = [*_lengths(features_ID), *_left_out(found, domains)]
    return make_benchmark(name, slug, classes, rows, holds_features=True, notes=notes)


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


def _lengths(features_ID: np.ndarray) -> list[str]:
    length_I = np.linalg.norm(features_ID, axis=1)
    others_I = np.isfinite(length_I) & (abs(length_I - 1) > UNIT)
    if not others_I.any():
        return []
    low, high = length_I[others_I].min(), length_I[others_I].max()
    return [
        f"{others_I.sum()} of {len(length_I)} features are {low:.3g} to {high:.3g} long: each is scaled to length 1"
    ]


def _left_out(found: dict[str, Any], domains: Sequence[str]) -> list[str]:
    others = Counter(str(found["domain"][i]) for i, domain in enumerate(domains) if not domain)
    return [f"left out: {count} images of domain {name}" for name, count in sorted(others.items())]
