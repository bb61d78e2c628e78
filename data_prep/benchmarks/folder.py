"""A user's own images as a benchmark.

    <root>/classes.csv                      name,wnid,seen
    <root>/<folder>/<class>/<image>         one of three layouts:

    source/, target/                        two domains: the first is labelled, the second only scores the test
    train/, (validation/,) test/            one domain with splits: test images of all classes score the test
    <class>/                                one domain without: images of unseen classes, and 15 % of those of each
                                            seen class, score the test

Folders with other names need their roles said: "folder:<root>::<source>::<target>", which is what `--source` and
`--target` make of "folder:<root>". Roles are never guessed.

Class folders bear the class names, with `_` or `+` for spaces if you like, in either Unicode form. `classes.csv`:
separated by commas, semicolons or tabs; `seen` is 1/0, yes/no or true/false. `wnid` is a WordNet 3.0 offset
("n02084071"); empty, the name is looked up, and `-` says that WordNet lacks the class. Class ids follow the rows of
the file. Splits, where folders do not say them: within every class and domain, images in the order of the hash of their
key; the first 70 % are train, then 15 % val and 15 % test (one each at least, given three images). So a new image moves
few others.
"""

import csv
import difflib
import hashlib
import io
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from data_prep.benchmarks.base import DOMAINS, IMAGE_SCHEMA, Benchmark
from data_prep.errors import UserError, some_of
from data_prep.feature_store import ClassTable
from data_prep.wordnet import resolve_wnids

CLASSES = "classes.csv"
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "a drawing of a {}.", "{}")
DEFAULT_CLIP = "openai/clip-vit-base-patch32"
HELD_OUT = 0.15  # the share of val, and that of test
SEEN_VALUES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("val", "valid", "validation", "dev"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}
"""Folders of one domain's splits: index into feature_store.SPLITS."""
ROLES = "::"
"""Between the path, the source folder and the target folder in a benchmark's name."""
LITTER = {"thumbs.db", "desktop.ini", "@eadir", "__macosx"}
"""What systems leave beside images."""
NO_IMAGES = (".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".pdf", ".zip", ".url", ".log", ".yaml")
"""Ends of names of files that are no images and are not meant to be."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A folder of class folders."""

    folder: Path
    """It."""
    domain: str
    """One of DOMAINS."""
    split: int | None = None
    """Split of all its images; None: dealt by their hashes."""


def read(name: str, root: Path) -> Benchmark:
    """Read the benchmark "folder:<path>" under `root`. Raises UserError for whatever breaks the rules above."""
    path, *roles = str(root).split(ROLES)
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"{name}: {root} is no folder", option="benchmark")
    root = root.resolve()
    names, wnids, seen = _read_classes(root / CLASSES)
    passed_over: list[str] = []
    if not roles and _holds_classes(root, names):
        rows = _dealt(_read_part(root, _Part(folder=root, domain="source"), names, passed_over), seen)
    else:
        parts = _said(root, roles) if roles else _layout(root)
        rows = [row for part in parts for row in _read_part(root, part, names, passed_over)]
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
        notes=(*_roles(rows, seen), *_litter(passed_over)),
    )


def class_names(root: Path) -> list[str]:
    """Return the names of classes that have a folder, sorted. Raises UserError where there is no folder `root`."""
    if not root.is_dir():
        raise UserError(f"must be a folder of images; got {root}", option="path")
    folders = _folders(root)
    below = [folder for domain in folders for folder in _folders(domain)]  # of domains or splits
    for folder in below or folders:
        _check_utf8(str(folder.relative_to(root)))
    return sorted({_spoken(folder.name) for folder in below or folders})


def _read_classes(path: Path) -> tuple[list[str], list[str], list[bool]]:
    try:
        text = path.read_text(encoding="utf-8-sig").lstrip("\n")  # -sig: spreadsheets begin the file with a mark
        if text.lower().startswith("sep="):  # so do others, with the separator
            text = text.partition("\n")[2].lstrip("\n")
        separator = max(",;\t|", key=text.partition("\n")[0].count)
        cells = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
        table = [row for row in cells if len(row) > 1 or "".join(row).strip()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} must be a CSV file in UTF-8 with columns name, wnid, seen: {error}") from error
    columns = [cell.strip().lower() for cell in table[0]] if table else []
    if len(table) < 2 or not {"name", "seen"} <= set(columns):
        found = f"columns {', '.join(columns)} and {len(table) - 1} rows" if columns else "nothing"
        raise UserError(f"{path} must have columns name, wnid, seen and a row per class; found {found}")
    rows = [dict(zip(columns, (cell.strip() for cell in cells), strict=False)) for cells in table[1:]]
    names = [_spoken(row["name"]) for row in rows]
    first: dict[str, int] = {}
    for line, (class_name, row) in enumerate(zip(names, rows, strict=True), start=2):
        if not class_name:
            raise UserError(f"{path} line {line}: name must not be empty")
        if first.setdefault(class_name, line) != line:
            raise UserError(f"{path} line {line}: name must be unique; {class_name!r} is there twice")
        if row.get("seen", "").lower() not in SEEN_VALUES:
            got = row.get("seen", "")
            raise UserError(f"{path} line {line}: seen must be one of {', '.join(SEEN_VALUES)}; got {got!r}")
    seen = [SEEN_VALUES[row["seen"].lower()] for row in rows]
    if all(seen) or not any(seen):
        raise UserError(f"{path}: column seen must hold both seen and unseen classes; all {len(seen)} are {seen[0]}")
    return names, [row.get("wnid", "") for row in rows], seen


def _holds_classes(root: Path, names: list[str]) -> bool:
    """Return whether the folders here are those of classes."""
    return any(_spoken(folder.name) in names for folder in _folders(root))


def _said(root: Path, roles: list[str]) -> list[_Part]:
    """Return the folders that the user names."""
    found = {folder.name: folder for folder in _folders(root)}
    if len(roles) != 2 or roles[0] == roles[1]:
        raise UserError(f"must be folder:PATH{ROLES}SOURCE{ROLES}TARGET; got {ROLES.join(roles)}", option="benchmark")
    for option, role in zip(DOMAINS, roles, strict=True):
        if role not in found:
            near = difflib.get_close_matches(role, found, n=1, cutoff=0.0)
            hint = f" (nearest: {near[0]})" if near else ""
            raise UserError(f"must be a folder of {root}; got {role!r}{hint}", option=option)
    return [_Part(folder=found[role], domain=domain) for domain, role in zip(DOMAINS, roles, strict=True)]


def _layout(root: Path) -> list[_Part]:
    """Return the folders whose names say their roles."""
    folders = {folder.name.lower(): folder for folder in _folders(root)}
    if set(folders) == set(DOMAINS):
        return [_Part(folder=folders[domain], domain=domain) for domain in DOMAINS]
    splits = {SPLIT_NAMES.get(name): folder for name, folder in folders.items()}
    if len(splits) == len(folders) and {0, 2} <= set(splits) <= {0, 1, 2}:
        ordered = sorted((split, folder) for split, folder in splits.items() if split is not None)
        return [_Part(folder=folder, domain=DOMAINS[split == 2], split=split) for split, folder in ordered]
    found = ", ".join(sorted(folder.name for folder in folders.values())) or "none"
    raise UserError(
        f"{root} must hold source and target, or train and test, or a folder for each class; found {found}: "
        f"say which is which with --source NAME --target NAME"
    )


def _read_part(root: Path, part: _Part, names: list[str], passed_over: list[str]) -> list[tuple]:
    rows = []
    label_of = {name: label for label, name in enumerate(names)}
    for class_folder in sorted(part.folder.iterdir()):
        below = str(class_folder.relative_to(root))
        _check_utf8(below)
        if class_folder.name.startswith(".") or (part.folder == root and class_folder.name == CLASSES):
            continue
        if _is_litter(class_folder.name):
            passed_over.append(below)
            continue
        if not class_folder.is_dir():
            raise UserError(f"{class_folder} must be in the folder of its class, {part.folder}/<class>/")
        if _spoken(class_folder.name) not in label_of:
            raise UserError(f"{class_folder} has no row in {root / CLASSES}: its name must be that of a class")
        # whatever its suffix: opening it tells if it is an image; as strings: a million Paths take half a minute
        files = sorted(name for name in os.listdir(class_folder) if not name.startswith("."))
        passed_over += [f"{below}/{name}" for name in files if _is_litter(name)]
        keys = [f"{below}/{name}" for name in files if not _is_litter(name)]
        for key in keys:
            _check_utf8(key)
        splits = _splits(keys) if part.split is None else [part.split] * len(keys)
        label = label_of[_spoken(class_folder.name)]
        rows += [(key, label, part.domain, split, f"{root}/{key}") for key, split in zip(keys, splits, strict=True)]
    return rows


def _dealt(rows: list[tuple], seen: list[bool]) -> list[tuple]:
    """Return the images of one domain with their roles: test images, and all of unseen classes, score the test."""
    source = [row for row in rows if seen[row[1]] and row[3] != 2]
    tested = [row for row in rows if not seen[row[1]] or row[3] == 2]
    return source + [(key, label, "target", 2, path) for key, label, _, _, path in tested]


def _roles(rows: list[tuple], seen: list[bool]) -> list[str]:
    """Say which images are whose, with examples: a wrong layout shows here before anything is computed."""
    said = []
    for domain, role in zip(DOMAINS, ("labelled source", "unlabelled target"), strict=True):
        own = [row for row in rows if row[2] == domain]
        images = Counter(seen[row[1]] for row in own)
        classes = Counter(seen[label] for label in {row[1] for row in own})
        shown = [own[i][0] for i in sorted({0, len(own) // 2, len(own) - 1})] if own else []
        said.append(
            f"{role}: {images[True]} images of {classes[True]} seen classes, {images[False]} of {classes[False]} "
            f"unseen classes; {', '.join(shown)}"
        )
    return said


def _litter(passed_over: list[str]) -> list[str]:
    return [f"passed over: {some_of(passed_over)}"] if passed_over else []


def _is_litter(name: str) -> bool:
    return name.lower() in LITTER or name.lower().endswith(NO_IMAGES)


def _folders(root: Path) -> list[Path]:
    return sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".") and not _is_litter(path.name)
    )


def _check_utf8(key: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(key).decode(errors="backslashreplace")
        raise UserError(
            f"names of files must be UTF-8; {shown} is not: rename it, or unpack it with its encoding"
        ) from None


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
            raise UserError(f"{root}: every {kind} class needs {domain} images; none for {some_of(bare)}")


def _spoken(name: str) -> str:
    name = unicodedata.normalize("NFC", name)  # archives of some systems have the other form
    return " ".join(name.replace("_", " ").replace("+", " ").split())
