"""Class tables of benchmarks whose classes are WordNet synsets; data_prep/assets/CLASSES.md states their sources."""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

ASSETS = Path(__file__).parent.parent / "assets"
ILSVRC_CLASSES = 1000


class WordNetClass(NamedTuple):
    """A class name and its synset."""

    name: str
    wnid: str


@cache
def awa2_classes() -> tuple[WordNetClass, ...]:
    """Return the 50 classes of AwA2 in I2AwA's label order; the first 40 are the known ones of I2AwA."""
    return _read("awa2_classes.csv")


@cache
def webvision_classes() -> tuple[WordNetClass, ...]:
    """Return the 5,000 classes of WebVision 2.0 in label order, ILSVRC's 1,000 first."""
    return _read("webvision_classes.csv")


@cache
def ilsvrc_wnids() -> tuple[str, ...]:
    """Return the 1,000 wnids of ILSVRC-2012, sorted: the label order everyone uses."""
    return tuple(entry.wnid for entry in webvision_classes()[:ILSVRC_CLASSES])


def _read(file_name: str) -> tuple[WordNetClass, ...]:
    with (ASSETS / file_name).open(newline="", encoding="utf-8") as file:
        return tuple(WordNetClass(row["name"], row["wnid"]) for row in csv.DictReader(file))
