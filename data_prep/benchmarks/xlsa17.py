"""Generalized zero-shot learning as proposed by Xian et al. (TPAMI 2018, "xlsa17"): awa2, cub, sun, flo.

    <data-root>/xlsa17/data/<AWA2|CUB|SUN|FLO>/res101.mat, att_splits.mat
    <data-root>/Animals_with_Attributes2/JPEGImages/<class>/<file>.jpg           awa2
    <data-root>/CUB_200_2011/images/<number>.<class>/<file>.jpg                  cub
    <data-root>/SUN/images/<letter>/<class>/<file>.jpg                           sun
    <data-root>/Flowers/jpg/image_<number>.jpg, cat_to_name.json                 flo (also oxford_flowers/)

Splits: xlsa17.zip of the authors' page at the Max Planck Institute for Informatics (FLO's in the same form: Xian et
al., CVPR 2018); images from the data sets' own pages. `image_files` holds paths of the authors' machine, which are cut
at the image folder. Labels and indices in the .mat files start at 1. FLO has no class names: they are read from
cat_to_name.json, the file CoOp uses, which maps Oxford's label (from 1) to a name.

Source: the images of trainval_loc, all train. Target: those of test_seen_loc and test_unseen_loc. The published
train_loc and val_loc are class-disjoint folds for tuning and cover images of test_seen_loc, too (FLO's are 5,878 and
1,156: together 5,631 trainval and 1,403 test-seen images), so they are not used: the folds of seen classes that
selection makes take their place. Published metric: argmax over all classes, mean per-class accuracy S and U, H of both.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data_prep.benchmarks.base import Benchmark
from data_prep.benchmarks.listing import Listing, find_place, need_root, read_json, read_mat
from data_prep.benchmarks.wordnet_classes import awa2_classes, ilsvrc_wnids
from data_prep.errors import UserError
from data_prep.feature_store import ClassTable
from data_prep.templates import template_sets

DEFAULT_CLIP = "openai/clip-vit-base-patch16"
LOCATIONS = ("trainval_loc", "test_seen_loc", "test_unseen_loc")


class XlsaSet(NamedTuple):
    """A data set as xlsa17 publishes it."""

    folder: str
    """Below xlsa17/data."""
    images: tuple[str, ...]
    """Places of the image folder; the name of the last part is where `image_files` is cut."""
    seen: int
    unseen: int
    counts: tuple[int, int, int]
    """Images of LOCATIONS."""
    templates: str


SETS = {
    "awa2": XlsaSet("AWA2", ("Animals_with_Attributes2/JPEGImages",), 40, 10, (23_527, 5_882, 7_913), "single"),
    "cub": XlsaSet("CUB", ("CUB_200_2011/images", "CUB/images"), 150, 50, (7_057, 1_764, 2_967), "single"),
    "sun": XlsaSet("SUN", ("SUN/images",), 645, 72, (10_320, 2_580, 1_440), "single"),
    "flo": XlsaSet("FLO", ("Flowers/jpg", "oxford_flowers/jpg"), 82, 20, (5_631, 1_403, 1_155), "flowers"),
}


def read(name: str, data_root: Path | None, allow_partial: bool = False) -> Benchmark:
    """Read the benchmark `name` of SETS. Raises UserError for whatever is missing or not as published."""
    root = need_root(name, data_root)
    published = SETS[name]
    tables = f"xlsa17/data/{published.folder}"
    res101, splits = (find_place(root, f"{name}'s table", f"{tables}/{file}.mat") for file in ("res101", "att_splits"))
    folder = find_place(root, f"{name}'s image folder", *published.images)
    content = read_mat(res101, "labels", "image_files")
    labels_I = _integers(content["labels"], res101, "labels") - 1
    paths = [_cut(path, folder.name, res101) for path in _strings(content["image_files"])]
    if len(paths) != len(labels_I):
        raise UserError(f"{res101} must have a label per image; it has {len(labels_I)} and {len(paths)}")
    names = _flower_names(root, name) if name == "flo" else [_spoken(n) for n in _class_names(splits)]
    wnids = _wnids(names, splits) if name == "awa2" else (None,) * len(names)
    indices = {key: _indices(value, len(paths), splits, key) for key, value in read_mat(splits, *LOCATIONS).items()}
    unseen_C = _unseen(name, {key: labels_I[index] for key, index in indices.items()}, len(names), splits)

    listing = Listing(name, len(names), allow_partial=allow_partial)
    listing.expect("seen classes", int((~unseen_C).sum()), published.seen, splits)
    listing.expect("unseen classes", int(unseen_C.sum()), published.unseen, splits)
    for key, count in zip(LOCATIONS, published.counts, strict=True):
        images = [(paths[i], int(labels_I[i])) for i in indices[key]]
        domain, split = ("source", "train") if key == "trainval_loc" else ("target", "test")
        listing.expect(f"images in {key}", len(images), count, splits)
        listing.add(domain, split, images, folder=folder, listed_in=splits)
    return Benchmark(
        name=name,
        slug=name,
        classes=ClassTable(names=tuple(names), wnids=wnids, unseen_RC=unseen_C[None]),
        images=listing.table(),
        templates=template_sets()[published.templates],
        default_clip=DEFAULT_CLIP,
        auxiliary_wnids=ilsvrc_wnids() if name == "awa2" else (),
        partial=listing.partial,
    )


def _integers(values: np.ndarray, path: Path, name: str) -> np.ndarray:
    """Return int64 (I,) of a MATLAB column or row, which often comes as doubles or bytes."""
    flat = np.asarray(values).reshape(-1)
    if flat.dtype.kind not in "iuf" or not np.array_equal(flat, np.floor(flat)):
        raise UserError(f"{path}: {name} must hold whole numbers")
    return flat.astype(np.int64)


def _indices(values: np.ndarray, images: int, path: Path, name: str) -> np.ndarray:
    """Return 0-based indices, int64, of a MATLAB variable of 1-based ones."""
    index = _integers(values, path, name)
    if not len(index):
        raise UserError(f"{path}: {name} must hold indices; it is empty")
    if not 1 <= index.min() <= index.max() <= images:
        raise UserError(f"{path}: {name} must hold indices 1 to {images}; it has {index.min()} to {index.max()}")
    return index - 1


def _strings(cells: np.ndarray) -> list[str]:
    """Return the texts of a MATLAB cell array: each cell is an array of one string, or of none."""
    return [str(cell.item()) if isinstance(cell, np.ndarray) and cell.size == 1 else "" for cell in cells.reshape(-1)]


def _cut(path: str, folder: str, listed_in: Path) -> str:
    """Return the part behind the image folder of a path of another machine."""
    head, mark, tail = path.replace("\\", "/").rpartition(f"/{folder}/")
    if not mark or not tail:
        raise UserError(f"{listed_in}: image_files must lead through a folder {folder}; got {path!r}")
    return tail


def _class_names(splits: Path) -> list[str]:
    return _strings(read_mat(splits, "allclasses_names")["allclasses_names"])


def _spoken(class_name: str) -> str:
    """Turn "001.Black_footed_Albatross" into "Black footed Albatross"."""
    return " ".join(re.sub(r"^\d+\.", "", class_name).replace("_", " ").replace("+", " ").split())


def _flower_names(root: Path, name: str) -> list[str]:
    path = find_place(root, f"{name}'s class names", "Flowers/cat_to_name.json", "oxford_flowers/cat_to_name.json")
    names = read_json(path)
    if not isinstance(names, dict) or sorted(names) != sorted(str(c + 1) for c in range(len(names))):
        raise UserError(f'{path} must map "1", "2", ... to names')
    return [str(names[str(c + 1)]) for c in range(len(names))]


def _wnids(names: list[str], splits: Path) -> tuple[str, ...]:
    wnid_of = {entry.name: entry.wnid for entry in awa2_classes()}
    unknown = [n for n in names if n not in wnid_of]
    if unknown:
        raise UserError(f"{splits}: allclasses_names must be the classes of AwA2; {unknown[0]!r} is none")
    return tuple(wnid_of[n] for n in names)


def _unseen(name: str, labels: dict[str, np.ndarray], classes: int, splits: Path) -> torch.Tensor:
    """Return the classes of test_unseen_loc, bool (C,). Raises UserError if one is trained on or has no name."""
    wrong = [label for values in labels.values() for label in values.tolist() if not 0 <= label < classes]
    if wrong:
        raise UserError(f"{splits.parent}: labels must be 1 to {classes}, the number of classes; got {wrong[0] + 1}")
    unseen_C = torch.zeros(classes, dtype=torch.bool)
    unseen_C[torch.tensor(labels["test_unseen_loc"])] = True
    trained = np.unique(np.concatenate([labels["trainval_loc"], labels["test_seen_loc"]]))
    both = [c for c in trained.tolist() if unseen_C[c]]
    if both:
        raise UserError(
            f"{name}: {splits} has images of class {both[0] + 1} in seen and unseen parts", option="benchmark"
        )
    return unseen_C
