"""Data sets of Hugging Face's library as a benchmark: "hf:<path or name>".

A local folder in one of the layouts that `datasets.load_dataset` reads (ImageFolder, Parquet, WebDataset and others),
or a name on the hub, downloaded into the library's cache; offline it is read from there. It needs a column of images
and a column of labels: class labels, or `label` or `cls` with names of classes or rows of the class table.

The class table (see own_data.py) is `classes.csv` in the folder; of a name on the hub it is `NAME.csv`, by the name's
last part, in the working folder. `python -m data_prep classes hf:<path or name>` writes it.

Splits train, validation and test are those of one domain; source and target are two domains; others need their roles
said with `--source` and `--target`. One split alone is dealt as one domain.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
    spoken,
)
from data_prep.errors import UserError, some_of
from data_prep.storage import reason

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hf:"


def read(name: str, path: Path) -> Benchmark:
    """Read the benchmark "hf:<path or name>". Raises UserError for whatever breaks the rules above."""
    place, *roles = str(path).split(ROLES)
    parts = _load(place)
    classes = read_classes(class_table(Path(place)))
    rows: list[Row] = []
    said = _roles(list(parts), roles, name)
    for split, (domain, index) in said.items():
        images, labels = _columns(parts[split], f"{name}, split {split}")
        ids = label_ids(np.array(labels), classes.names, f"{name}, split {split}")
        keys = [f"{split}/{i:08d}" for i in range(len(images))]
        splits = deal_by_class(keys, ids) if index is None else [index] * len(keys)
        rows += [
            (key, label, domain, of_image, None if image["bytes"] else image["path"], image["bytes"])
            for key, label, of_image, image in zip(keys, ids, splits, images, strict=True)
        ]
    if len(said) == 1:
        rows = deal_roles(rows, classes.seen)
    left_out = sorted(parts.keys() - said.keys())
    notes = [f"left out: split {some_of(left_out)}"] if left_out else []
    return make_benchmark(name, f"hf-{Path(place).name}", classes, rows, notes=notes)


def class_table(path: Path) -> Path:
    """Return where the class table of a folder or of a name on the hub is."""
    return path / CLASSES if path.is_dir() else Path(f"{path.name}.csv")


def class_places(path: str) -> dict[str, set[str]]:
    """Return the names of a data set's classes, and the splits that have images of each. Raises UserError."""
    places: dict[str, set[str]] = {}
    for split, part in _load(path).items():
        for name in {spoken(str(label)) for label in _columns(part, f"{PREFIX}{path}, split {split}")[1]} - {""}:
            places.setdefault(name, set()).add(split)
    return places


def _load(place: str) -> "dict[str, Dataset]":
    """Return the splits of a data set. Raises UserError."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f'{PREFIX}{place} needs datasets: pip install -e ".[datasets]"', option="benchmark") from error
    datasets.disable_progress_bars()
    try:
        return dict(datasets.load_dataset(place))
    except Exception as error:  # the library raises a dozen unrelated types
        raise UserError(f"{PREFIX}{place} cannot be loaded: {reason(error)}", option="benchmark") from error


def _columns(part: "Dataset", where: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return the images, as bytes or path, and the names of their classes. Raises UserError."""
    from datasets import ClassLabel, Image

    kinds = part.features
    images = [column for column, kind in kinds.items() if isinstance(kind, Image)]
    labels = [column for column, kind in kinds.items() if isinstance(kind, ClassLabel)]
    labels = labels or [column for column in kinds if column in ("label", "cls")]
    if len(images) != 1 or len(labels) != 1:
        shown = ", ".join(f"{column}: {type(kind).__name__}" for column, kind in kinds.items())
        raise UserError(f"{where} must have one column of images and one of class labels, or label; found {shown}")
    undecoded = part.cast_column(images[0], Image(decode=False))
    given = undecoded[labels[0]]
    kind = kinds[labels[0]]
    if isinstance(kind, ClassLabel):  # -1 or nothing: an image without a label
        given = ["" if label is None or label < 0 else kind.int2str(label) for label in given]
    return list(undecoded[images[0]]), list(given)


def _roles(splits: list[str], roles: list[str], name: str) -> dict[str, tuple[str, int | None]]:
    """Return the domain of each split that is used, and which split of the domain it is (None: dealt).

    Raises UserError.
    """
    if roles:
        said = said_roles(roles, splits, f"split of {name.split(ROLES)[0]}")
        return {role: (domain, None) for role, domain in said.items()}
    if set(splits) == set(DOMAINS):
        return {domain: (domain, None) for domain in DOMAINS}
    if len(splits) == 1:
        return {splits[0]: ("source", None)}
    found = {split: SPLIT_NAMES.get(split.lower()) for split in splits}
    if not {0, 2} <= set(found.values()) or None in found.values():
        raise UserError(
            f"{name} must have splits source and target, or train and test; found {', '.join(splits)}: say which is "
            f"which with --source NAME --target NAME"
        )
    return {split: (DOMAINS[index == 2], index) for split, index in found.items()}
