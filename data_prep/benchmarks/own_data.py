"""What all benchmarks of a user's own data share: the class table, the roles of images, splits.

`classes.csv`: columns name, wnid and seen, separated by commas, semicolons or tabs; `seen` is 1/0, yes/no or
true/false. `wnid` is a WordNet 3.0 offset ("n02084071"); empty, the name is looked up, and `-` says that WordNet lacks
the class. Class ids follow the rows of the file. Names may have `_` or `+` for spaces, in either Unicode form.

Splits, where the data does not say them: within every class and domain, images in the order of the hash of their key;
the first 70 % are train, then 15 % val and 15 % test (one each at least, given three images). So a new image moves few
others. Where there is one domain, images of unseen classes, and the test images of seen ones, score the test.

Target images may lack a label. Where some do, an unseen class needs no image: it may be among them.
"""

import csv
import hashlib
import io
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from data_prep.benchmarks.base import DOMAINS, IMAGE_SCHEMA, UNLABELLED, Benchmark, GivenTexts
from data_prep.errors import UserError, nearest, some_of
from data_prep.feature_store import ClassTable
from data_prep.word_senses import resolve_wnids
from data_prep.wordnet import NOT_IN_WORDNET

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
"""What splits are called: index into feature_store.SPLITS."""
DOMAIN_NAMES = {name: DOMAINS[split == 2] for name, split in SPLIT_NAMES.items()} | {name: name for name in DOMAINS}
"""The domain that the name of a folder or split says, where it says one."""
ROLES = "::"
"""Between the path, the source and the target in a benchmark's name."""

Row = tuple[str, int, str, int, str | None, bytes | None]
"""An image: IMAGE_SCHEMA."""


@dataclass(frozen=True, kw_only=True)
class ClassRows:
    """The rows of a class table."""

    path: Path
    """The table."""
    names: list[str]
    """(C,) names as people say them."""
    wnids: list[str]
    """(C,) as they are written."""
    seen: list[bool]
    """(C,) whether the class is seen."""


def make_benchmark(
    name: str,
    slug: str,
    classes: ClassRows,
    rows: Sequence[Row],
    *,
    holds_features: bool = False,
    texts: GivenTexts | None = None,
    notes: Sequence[str] = (),
) -> Benchmark:
    """Return the benchmark of these classes and images, source before target; rows of no domain are left out.

    `texts`: features of the class texts, where they are given: then nothing encodes those of WordNet's nodes, and no
    class has a place in it.
    Raises UserError where a source image has no label, a seen class no source image, or an unseen one no target image.
    """
    rows = [row for domain in DOMAINS for row in rows if row[2] == domain]
    names, seen = classes.names, classes.seen
    _check_coverage(name, names, seen, rows)
    columns = zip(*rows, strict=True)
    wnids = classes.wnids if texts is None else [NOT_IN_WORDNET] * len(names)
    resolved = resolve_wnids(names, wnids, where=f"column wnid of {classes.path}")
    outside = [class_name for class_name, wnid in zip(names, resolved, strict=True) if wnid is None]
    return Benchmark(
        name=name,
        slug=slug,
        classes=ClassTable(
            names=tuple(names),
            wnids=resolved,
            unseen_RC=~torch.tensor([seen]),
        ),
        images=pa.table([pa.array(c, f.type) for c, f in zip(columns, IMAGE_SCHEMA, strict=True)], schema=IMAGE_SCHEMA),
        templates=TEMPLATES if texts is None else texts.templates,
        default_clip=DEFAULT_CLIP,
        holds_features=holds_features,
        texts=texts,
        notes=(*_roles(rows, seen), *(_outside(outside) if texts is None else texts.notes), *notes),
    )


def _outside(names: Sequence[str]) -> list[str]:
    costs = "a graph has no edges to them, and folds go by the similarity of their texts"
    return [f"outside WordNet: {some_of(names)}; {costs}"] if names else []


def read_classes(path: Path) -> ClassRows:
    """Read a class table. Raises UserError."""
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
    names = [spoken(row["name"]) for row in rows]
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
    return ClassRows(path=path, names=names, wnids=[row.get("wnid", "") for row in rows], seen=seen)


def deal_roles(rows: Sequence[Row], seen: Sequence[bool]) -> list[Row]:
    """Return the images of one domain with their roles: test images, and all of unseen classes, score the test.

    Images without a label are the target's, too.
    """

    def is_tested(row: Row) -> bool:
        _, label, _, split, *_ = row
        return label == UNLABELLED or not seen[label] or split == 2

    source = [row for row in rows if not is_tested(row)]
    tested = [row for row in rows if is_tested(row)]
    return source + [(key, label, "target", 2, path, data) for key, label, _, _, path, data in tested]


def said_roles(roles: Sequence[str], found: Sequence[str], kind: str) -> dict[str, str]:
    """Return the domain of the two folders, domains or splits whose roles the user says.

    `found`: names that are there; `kind`: what they are and where, such as "folder of PATH". Raises `UserError`.
    """
    if len(roles) != len(DOMAINS) or roles[0] == roles[1]:
        got = ROLES.join(("", *roles))
        raise UserError(
            f"must be PATH{ROLES}SOURCE{ROLES}TARGET, two different ones; got PATH{got}", option="benchmark"
        )
    for option, role in zip(DOMAINS, roles, strict=True):
        if role not in found:
            there = some_of(found) or "there is none"
            raise UserError(f"must be a {kind}: {there}; got {role!r}{nearest(role, found)}", option=option)
    return dict(zip(roles, DOMAINS, strict=True))


def _roles(rows: Sequence[Row], seen: Sequence[bool]) -> list[str]:
    """Say which images are whose, with examples: a wrong layout shows here before anything is computed."""
    said = []
    for domain, role in zip(DOMAINS, ("labelled source", "unlabelled target"), strict=True):
        own = [row for row in rows if row[2] == domain]
        labels = [row[1] for row in own if row[1] != UNLABELLED]
        images = Counter(seen[label] for label in labels)
        classes = Counter(seen[label] for label in set(labels))
        without = len(own) - len(labels)
        shown = [own[i][0] for i in sorted({0, len(own) // 2, len(own) - 1})] if own else []
        counts = [
            f"{images[True]} images of {classes[True]} seen classes, {images[False]} of {classes[False]} unseen classes"
        ]
        if without:
            counts = [*(counts if labels else []), f"{without} images without a label, which are not scored"]
        said.append(f"{role}: {', '.join(counts)}; {', '.join(shown)}")
    return said


def deal_splits(keys: Sequence[str]) -> np.ndarray:
    """Return the index into SPLITS of every image of one class, int8 (I,)."""
    held_out = max(round(HELD_OUT * len(keys)), 1) if len(keys) >= 3 else 0
    order = sorted(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode()).digest())
    split_I = np.zeros(len(keys), dtype=np.int8)
    split_I[order[len(keys) - 2 * held_out :]] = 1
    split_I[order[len(keys) - held_out :]] = 2
    return split_I


def deal_by_class(keys: Sequence[str], labels: Sequence[int], domains: Sequence[str] | None = None) -> list[int]:
    """Return the index into SPLITS of every image, dealt within each class and domain."""
    rows: dict[tuple[int, str], list[int]] = {}
    for i, place in enumerate(zip(labels, domains or [""] * len(labels), strict=True)):
        rows.setdefault(place, []).append(i)
    split_I = np.zeros(len(keys), dtype=np.int8)
    for of_class in rows.values():
        split_I[of_class] = deal_splits([keys[i] for i in of_class])
    return split_I.tolist()


def label_ids(given: np.ndarray, names: Sequence[str], where: str) -> list[int]:
    """Return the class id of every image from names of classes, or rows of the class table; "" and -1 are no label.

    Raises UserError.
    """
    if given.dtype.kind in "iu":
        wrong = given[(given < UNLABELLED) | (given >= len(names))]
        if len(wrong):
            rule = f"label must be a row of {CLASSES}, 0 to {len(names) - 1}, or {UNLABELLED} of images without one"
            raise UserError(f"{where}: {rule}; got {wrong[0]}")
        return given.tolist()
    index = {"": UNLABELLED} | {name: c for c, name in enumerate(names)}
    said = ["" if label is None else spoken(str(label)) for label in given]
    unknown = sorted({name for name in said if name not in index})
    if unknown:
        got = f"{some_of(unknown)}{nearest(unknown[0], names)}"
        raise UserError(f"{where}: label must be a name of {CLASSES}; got {got}")
    return [index[name] for name in said]


def spoken(name: str) -> str:
    """Return a class name as people say it."""
    name = unicodedata.normalize("NFC", name)  # archives of some systems have the other form
    return " ".join(name.replace("_", " ").replace("+", " ").split())


def _check_coverage(name: str, names: Sequence[str], seen: Sequence[bool], rows: Sequence[Row]) -> None:
    """Raise UserError where a source image has no label, a seen class no source image or an unseen one no target image.

    Images without a label may be of any class.
    """
    present = {(label, domain) for _, label, domain, *_ in rows}
    if (UNLABELLED, "source") in present:
        bare = [key for key, label, domain, *_ in rows if label == UNLABELLED and domain == "source"]
        raise UserError(f"{name}: every source image needs a label; none for {some_of(bare)}")
    of_unseen = () if (UNLABELLED, "target") in present else ((False, "target", "unseen"),)
    for is_seen, domain, kind in ((True, "source", "seen"), *of_unseen):
        bare = [n for c, n in enumerate(names) if seen[c] == is_seen and (c, domain) not in present]
        if bare:
            raise UserError(
                f"{name}: every {kind} class needs {domain} images; none for {some_of(bare)}: change seen in {CLASSES}"
            )
