"""What the readers of published layouts share: finding files, reading lists, and checking images against both."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from posixpath import normpath
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.benchmarks.base import IMAGE_SCHEMA
from data_prep.errors import UserError
from data_prep.feature_store import SPLITS

SHOWN = 3
Images = Sequence[tuple[str, int]]
"""(path below the image folder, label) of every image."""


class Listing:
    """The images of one benchmark, checked as they are added.

    What falls short of the published data set is an error, or with `allow_partial` noted in `partial`.
    """

    def __init__(self, name: str, classes: int, *, allow_partial: bool) -> None:
        self.name, self.classes, self.allow_partial = name, classes, allow_partial
        self._rows: list[tuple[str, int, str, int, str]] = []
        self._keys: set[str] = set()
        self._gaps: list[str] = []

    @property
    def partial(self) -> str:
        """What is missing, in words; "" for the complete benchmark."""
        return "; ".join(self._gaps)

    def expect(self, what: str, found: int, published: int, where: Path) -> None:
        """Raise UserError where `where` holds another number of `what` than was published."""
        if found > published:
            raise UserError(
                f"{self.name}: {where} has {found:,} {what}; published are {published:,}", option="benchmark"
            )
        if found < published:
            self._gap(
                f"{found:,} of {published:,} {what}", f"{where} has {found:,} {what}; published are {published:,}"
            )

    def add(self, domain: str, split: str, images: Images, *, folder: Path, listed_in: Path, prefix: str = "") -> None:
        """Take the listed images of one domain and split.

        prefix: makes keys unique where two trees are one benchmark. Within one tree there is none, so that an image
        listed for both training and testing shows as a duplicate.
        Raises UserError for a label out of range, a path that leaves `folder`, an image listed twice, missing images.
        """
        missing = []
        present = _Present(folder)
        for path, label in images:
            if not 0 <= label < self.classes:
                raise UserError(f"{listed_in}: labels must be 0 to {self.classes - 1}; {path} has {label}")
            inside = normpath(path)  # not pathlib: it takes 5 s for ImageNet's paths
            if inside.startswith(("/", "../")) or inside in ("..", "."):
                raise UserError(f"{listed_in}: image paths must stay inside {folder}; got {path}")
            key = prefix + inside
            if key in self._keys:
                raise UserError(f"{listed_in}: every image must be listed once; {path} is there twice")
            self._keys.add(key)
            if inside in present:
                self._rows.append((key, label, domain, SPLITS.index(split), f"{folder}/{inside}"))
            else:
                missing.append(path)
        if missing:
            shown = ", ".join(missing[:SHOWN])
            self._gap(
                f"{len(missing):,} of {len(images):,} {domain} {split} images not on disk",
                f"{len(missing):,} of the {len(images):,} {domain} {split} images listed in {listed_in} are missing, "
                f"such as {shown}; looked for in {folder}",
            )

    def table(self) -> pa.Table:
        """Return IMAGE_SCHEMA, in the order added. Raises UserError if a domain has no image at all."""
        for domain in ("source", "target"):
            if not any(row[2] == domain for row in self._rows):
                raise UserError(f"{self.name}: no {domain} image is there", option="benchmark")
        columns = [*zip(*self._rows, strict=True), (None,) * len(self._rows)]
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, IMAGE_SCHEMA, strict=True)], schema=IMAGE_SCHEMA)

    def _gap(self, short: str, long: str) -> None:
        if not self.allow_partial:
            raise UserError(f"{self.name}: {long} (allow_partial goes on without them)", option="benchmark")
        self._gaps.append(short)


class _Present:
    """Which files are below a folder: each folder is listed once instead of a million files looked up."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, set[str]] = {}

    def __contains__(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        if parent not in self._names:
            try:
                self._names[parent] = set(os.listdir(self._folder / parent))
            except (OSError, ValueError):  # ValueError: a null byte in the name
                self._names[parent] = set()
        return name in self._names[parent]


def need_root(name: str, data_root: Path | None) -> Path:
    """Return the folder with the data. Raises UserError if it was not given or is none."""
    if data_root is None:
        raise UserError(f"must be the folder with images and lists of {name}, got none", option="data_root")
    if not data_root.expanduser().is_dir():
        raise UserError(f"must be a folder; got {data_root}", option="data_root")
    return data_root.expanduser().resolve()


def find_place(root: Path, what: str, *places: str) -> Path:
    """Return the first of `places` below `root` that exists. Raises UserError naming all of them."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise UserError(f"{what} is missing; looked for {', '.join(str(root / place) for place in places)}")


def read_lines(path: Path) -> list[str]:
    """Read lines without trailing white space, empty ones included so that indices are line numbers less one."""
    try:
        return [line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be a text file: {error}") from error


def read_labelled(path: Path) -> Iterator[tuple[int, str, int]]:
    """Yield line number, path and label of every line "path label"."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        image, _, label = line.rpartition(" ")
        if not image or not re.fullmatch(r"-?\d+", label):
            raise UserError(f"{path} line {number} must be an image path, a space and a label; got {line[:80]!r}")
        yield number, image, int(label)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be a JSON file: {error}") from error


def read_mat(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read variables of a MATLAB file (versions 4 to 7.2). Raises UserError for others and where one is missing."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=names)  # by name: the features in res101.mat take gigabytes
    except NotImplementedError:
        raise UserError(f"{path} is a MATLAB 7.3 (HDF5) file; save it with -v7, as it was published") from None
    except Exception as error:  # loadmat raises a dozen unrelated types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} must be a MATLAB file of version 5 to 7: {reason}") from error
    missing = [name for name in names if name not in content]
    if missing:
        raise UserError(f"{path} must hold {', '.join(names)}; {', '.join(missing)} missing")
    return {name: content[name] for name in names}


def class_folders(folder: Path, names: Iterable[str]) -> list[tuple[str, int]]:
    """List images of the folders called `names`, whose positions are the labels; sorted, hidden files left out."""
    images = []
    for label, name in enumerate(names):
        if (folder / name).is_dir():
            files = sorted(entry for entry in os.listdir(folder / name) if not entry.startswith("."))
            images += [(f"{name}/{file}", label) for file in files]
    return images
