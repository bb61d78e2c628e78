"""A user's own images as a benchmark.

    <root>/classes.csv                      name,wnid,seen
    <root>/<folder>/<class>/<image>         one of three layouts:

    source/, target/                        two domains: the first is labelled, labels of the second only score the test
    train/, (validation/,) test/            one domain with splits: test images of all classes score the test
    <class>/                                one domain without: images of unseen classes, and 15 % of those of each
                                            seen class, score the test

Folders with other names need their roles said: "folder:<root>::<source>::<target>", which is what `--source` and
`--target` make of "folder:<root>". Roles are never guessed.

Images that lie in the target's (or test's) folder itself, in no class folder, have no label: they are learned from and
classified, but not scored. All target images may be so.

Class folders bear the class names, with `_` or `+` for spaces if you like. own_data.py says what `classes.csv` holds,
and how images are dealt to splits.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from data_prep.benchmarks.base import DOMAINS, UNLABELLED, Benchmark
from data_prep.benchmarks.own_data import (
    CLASSES,
    ROLES,
    SPLIT_NAMES,
    Row,
    deal_roles,
    deal_splits,
    make_benchmark,
    read_classes,
    said_roles,
    spoken,
)
from data_prep.errors import UserError, some_of

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
    classes = read_classes(root / CLASSES)
    names = classes.names
    passed_over: list[str] = []
    if not roles and _holds_classes(root, names):
        rows = deal_roles(_read_part(root, _Part(folder=root, domain="source"), names, passed_over), classes.seen)
    else:
        parts = _said(root, roles) if roles else _layout(root)
        rows = [row for part in parts for row in _read_part(root, part, names, passed_over)]
    return make_benchmark(name, f"folder-{root.name}", classes, rows, notes=_litter(passed_over))


def class_places(root: Path) -> dict[str, set[str]]:
    """Return the names of classes that have a folder, and the domains or splits ("" without) in which each has one.

    Raises UserError where there is no folder `root`.
    """
    if not root.is_dir():
        raise UserError(f"must be a folder of images; got {root}", option="path")
    folders = _folders(root)
    below = [(folder, domain.name) for domain in folders for folder in _folders(domain)]  # of domains or splits
    places: dict[str, set[str]] = {}
    for folder, place in below or [(folder, "") for folder in folders]:
        _check_utf8(str(folder.relative_to(root)))
        places.setdefault(spoken(folder.name), set()).add(place)
    return places


def holds_unlabelled(root: Path) -> bool:
    """Return whether a folder of domains or splits has images in no class folder."""
    domains = _folders(root)
    return any(map(_folders, domains)) and any(_is_image(file) for domain in domains for file in domain.iterdir())


def _is_image(path: Path) -> bool:
    """Return whether a path is a file that is meant to be an image; opening it tells if it is one."""
    return not (path.name.startswith(".") or is_litter(path.name) or path.is_dir())


def _holds_classes(root: Path, names: list[str]) -> bool:
    """Return whether the folders here are those of classes."""
    return any(spoken(folder.name) in names for folder in _folders(root))


def _said(root: Path, roles: list[str]) -> list[_Part]:
    """Return the folders that the user names."""
    found = {folder.name: folder for folder in _folders(root)}
    said = said_roles(roles, sorted(found), f"folder of {root}")
    return [_Part(folder=found[name], domain=domain) for name, domain in said.items()]


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


def _read_part(root: Path, part: _Part, names: list[str], passed_over: list[str]) -> list[Row]:
    rows: list[Row] = []
    label_of = {name: label for label, name in enumerate(names)}
    unlabelled: list[str] = []
    for class_folder in sorted(part.folder.iterdir()):
        below = str(class_folder.relative_to(root))
        _check_utf8(below)
        if class_folder.name.startswith(".") or (part.folder == root and class_folder.name == CLASSES):
            continue
        if is_litter(class_folder.name):
            passed_over.append(below)
            continue
        if not class_folder.is_dir():
            if part.domain == "source":
                raise UserError(f"{class_folder} must be in the folder of its class, {part.folder}/<class>/")
            unlabelled.append(below)
            continue
        if spoken(class_folder.name) not in label_of:
            raise UserError(f"{class_folder} has no row in {root / CLASSES}: its name must be that of a class")
        # whatever its suffix: opening it tells if it is an image; as strings: a million Paths take half a minute
        files = sorted(name for name in os.listdir(class_folder) if not name.startswith("."))
        passed_over += [f"{below}/{name}" for name in files if is_litter(name)]
        keys = [f"{below}/{name}" for name in files if not is_litter(name)]
        for key in keys:
            _check_utf8(key)
        rows += _rows(root, part, keys, label_of[spoken(class_folder.name)])
    return rows + _rows(root, part, unlabelled, UNLABELLED)


def _rows(root: Path, part: _Part, keys: list[str], label: int) -> list[Row]:
    splits = deal_splits(keys) if part.split is None else [part.split] * len(keys)
    return [(key, label, part.domain, split, f"{root}/{key}", None) for key, split in zip(keys, splits, strict=True)]


def _litter(passed_over: list[str]) -> list[str]:
    return [f"passed over: {some_of(passed_over)}"] if passed_over else []


def is_litter(name: str) -> bool:
    """Return whether a file or folder of this name is no image and is not meant to be."""
    return name.lower() in LITTER or name.lower().endswith(NO_IMAGES)


def _folders(root: Path) -> list[Path]:
    return sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".") and not is_litter(path.name)
    )


def _check_utf8(key: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(key).decode(errors="backslashreplace")
        raise UserError(
            f"names of files must be UTF-8; {shown} is not: rename it, or unpack it with its encoding"
        ) from None
