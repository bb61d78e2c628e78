"""A user's own images as a benchmark.

    <root>/classes.csv                      name,wnid,seen
    <root>/<domain>/<class>/<image>         two domain folders

Domains: the folder named `source` is the labelled source and the one named `target` the unlabelled target; otherwise
the two in alphabetical order are source and target. Class folders bear the class names, with `_` or `+` for spaces if
you like. `classes.csv`: `seen` is 1/0, yes/no or true/false. `wnid` is a WordNet 3.0 offset ("n02084071"); empty, the
name is looked up, and `-` says that WordNet lacks the class. Class ids follow the rows of the file. Splits: within
every class and domain, images in the order of the hash of their key; the first 70 % are train, then 15 % val and 15 %
test (one each at least, given three images). So a new image moves few others.
"""

import csv
import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from data_prep.benchmarks.base import DOMAINS, IMAGE_SCHEMA, Benchmark
from data_prep.errors import UserError
from data_prep.feature_store import ClassTable
from data_prep.wordnet import resolve_wnids

CLASSES = "classes.csv"
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "a drawing of a {}.", "{}")
DEFAULT_CLIP = "openai/clip-vit-base-patch32"
HELD_OUT = 0.15  # the share of val, and that of test
SEEN_VALUES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
SHOWN = 5


def read(name: str, root: Path) -> Benchmark:
    """Read the benchmark "folder:<path>" under `root`. Raises UserError for whatever breaks the rules above."""
    if not root.is_dir():
        raise UserError(f"{name}: {root} is no folder", option="benchmark")
    root = root.resolve()
    names, wnids, seen = _read_classes(root / CLASSES)
    rows = [
        row
        for domain, folder in zip(DOMAINS, _domain_folders(root), strict=True)
        for row in _read_domain(root, folder, domain, names)
    ]
    _check_coverage(root, names, seen, rows)
    columns = [*zip(*rows, strict=True), (None,) * len(rows)]
    return Benchmark(
        name=name,
        slug=f"folder-{root.name}",
        classes=ClassTable(
            names=tuple(names),
            wnids=resolve_wnids(names, wnids, where=f"column wnid of {root / CLASSES}"),
            unseen_RC=~torch.tensor([seen]),
        ),
        images=pa.table([pa.array(c, f.type) for c, f in zip(columns, IMAGE_SCHEMA, strict=True)], schema=IMAGE_SCHEMA),
        templates=TEMPLATES,
        default_clip=DEFAULT_CLIP,
    )


def _read_classes(path: Path) -> tuple[list[str], list[str], list[bool]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets begin the file with a mark
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} must be a CSV file with columns name, wnid, seen: {error}") from error
    if not rows or not {"name", "seen"} <= rows[0].keys():
        raise UserError(f"{path} must have columns name, wnid, seen and a row per class")
    names = [_spoken(row["name"] or "") for row in rows]
    for line, (class_name, row) in enumerate(zip(names, rows, strict=True), start=2):
        if not class_name:
            raise UserError(f"{path} line {line}: name must not be empty")
        if names.index(class_name) != line - 2:
            raise UserError(f"{path} line {line}: name must be unique; {class_name!r} is there twice")
        if (row["seen"] or "").strip().lower() not in SEEN_VALUES:
            raise UserError(f"{path} line {line}: seen must be one of {', '.join(SEEN_VALUES)}; got {row['seen']!r}")
    seen = [SEEN_VALUES[row["seen"].strip().lower()] for row in rows]
    if all(seen) or not any(seen):
        raise UserError(f"{path}: column seen must hold both seen and unseen classes; all {len(seen)} are {seen[0]}")
    return names, [(row.get("wnid") or "").strip() for row in rows], seen


def _domain_folders(root: Path) -> list[Path]:
    folders = [path for path in _visible(root) if path.is_dir()]
    if len(folders) != 2:
        found = ", ".join(folder.name for folder in folders) or "none"
        raise UserError(f"{root} must hold two domain folders, such as source and target; found {found}")
    # Named folders first: a lone "target" among two must not become the source by its place in the alphabet.
    return sorted(folders, key=lambda folder: {"source": 0, "target": 2}.get(folder.name.lower(), 1))


def _read_domain(root: Path, folder: Path, domain: str, names: list[str]) -> list[tuple]:
    rows = []
    for class_folder in _visible(folder):
        if not class_folder.is_dir():
            raise UserError(f"{class_folder} must be in the folder of its class, {folder}/<class>/")
        if _spoken(class_folder.name) not in names:
            raise UserError(f"{class_folder} has no row in {root / CLASSES}: its name must be that of a class")
        label = names.index(_spoken(class_folder.name))
        # whatever its suffix: opening it tells if it is an image; as strings: a million Paths take half a minute
        files = sorted(name for name in os.listdir(class_folder) if not name.startswith("."))
        below = f"{folder.name}/{class_folder.name}"
        keys = [f"{below}/{name}" for name in files]
        for key, name, split in zip(keys, files, _splits(keys), strict=True):
            rows.append((key, label, domain, split, f"{class_folder}/{name}"))
    return rows


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _splits(keys: list[str]) -> np.ndarray:
    """Return the index into SPLITS of every image of one class, int8 (I,)."""
    held_out = max(round(HELD_OUT * len(keys)), 1) if len(keys) >= 3 else 0
    order = sorted(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode()).digest())
    split_I = np.zeros(len(keys), dtype=np.int8)
    split_I[order[len(keys) - 2 * held_out :]] = 1
    split_I[order[len(keys) - held_out :]] = 2
    return split_I


def _check_coverage(root: Path, names: list[str], seen: list[bool], rows: list[tuple]) -> None:
    """Raise UserError where a seen class has no source image or an unseen one no target image."""
    present = {(label, domain) for _, label, domain, *_ in rows}
    for is_seen, domain, kind in ((True, "source", "seen"), (False, "target", "unseen")):
        bare = [n for c, n in enumerate(names) if seen[c] == is_seen and (c, domain) not in present]
        if bare:
            more = f" and {len(bare) - SHOWN} more" if len(bare) > SHOWN else ""
            raise UserError(
                f"{root}: every {kind} class needs {domain} images; none for {', '.join(bare[:SHOWN])}{more}"
            )


def _spoken(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("+", " ").split())
