"""The 11 data sets of CoOp (Zhou et al., IJCV 2022), base-to-novel (CoCoOp, CVPR 2022) and cross-dataset.

    <data-root>/<folder>/split_zhou_<Set>.json and the image folder of SETS; and without a JSON file
    <data-root>/fgvc_aircraft/variants.txt, images_variant_<split>.txt, images/<number>.jpg
    <data-root>/imagenet/classnames.txt ("wnid name" per line), images/<train|val>/<wnid>/*.JPEG      val = test
    <data-root>/imagenetv2/imagenetv2-matched-frequency-format-val/<label>/*
    <data-root>/imagenet-sketch/images/<wnid>/*, imagenet-adversarial/imagenet-a/<wnid>/*,
    <data-root>/imagenet-rendition/imagenet-r/<wnid>/*

DATASETS.md of github.com/KaiyangZhou/CoOp says where each is downloaded. Split counts: the table of data sets in
CoOp's appendix; those of train, val and test add up to the sizes of the data sets themselves.

`<set>`: base-to-novel. Shots are drawn over all classes, THEN the first ceil(C / 2) labels become base (seen) and the
rest new (unseen), as in CoOp's code; drawing after the split would take other images. Source: base classes' shots
(train) and at most 4 validation shots (val; ImageNet has none). Target: the whole test split. Published accuracies are
over images, argmax within each half.
`classes=all` among the options: all classes are base, for training on a set and testing on another (transfer.py).
`imagenet-to-<set>`: trained on ImageNet's 1,000 classes, which are seen; the set's own classes follow them and are
unseen, its test split is the target. For imagenetv2, imagenet_sketch, imagenet_a and imagenet_r the classes are
ImageNet's, and no class is unseen.
Options follow the name: `dtd:shots=16,seed=2`; 16 shots, seed 1 and the base half if left out. `shots=all` takes every
image. Shots come from Python's generator, seeded and called as CoOp does (train, then val, classes in order of
appearance), so JSON splits give CoOp's images; ImageNet's folders are read in sorted order, CoOp's in the file
system's.
"""

import math
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_prep.benchmarks.base import Benchmark
from data_prep.benchmarks.coop_splits import Split, read_split, read_variant
from data_prep.benchmarks.listing import Images, Listing, need_root
from data_prep.errors import UserError
from data_prep.feature_store import ClassTable
from data_prep.templates import template_sets

DEFAULT_CLIP = "openai/clip-vit-base-patch16"
CROSS = "imagenet-to-"
VAL_SHOTS = 4


class Shots(NamedTuple):
    """How training images are drawn."""

    shots: int | None = 16
    """Training images per class; None takes all."""
    seed: int = 1
    half: bool = True
    """Whether only the first half of the classes is base."""

    @property
    def slug(self) -> str:
        """Name of the draw, fit for a folder name."""
        drawn = "all-shots" if self.shots is None else f"{self.shots}-shots-seed-{self.seed}"
        return drawn if self.half else f"{drawn}-all-classes"


def read(name: str, data_root: Path | None, allow_partial: bool = False) -> Benchmark:
    """Read the benchmark `name`, "<set>" or "imagenet-to-<set>" with options. Raises UserError for any mistake."""
    base, _, text = name.partition(":")
    shots = parse_options(name, text)
    root = need_root(name, data_root)
    read_one = _read_cross if base.startswith(CROSS) else _read_base_to_novel
    return read_one(name, base, shots, root, allow_partial)


def parse_options(name: str, text: str) -> Shots:
    """Parse "shots=16,seed=2". Raises UserError with the valid options."""
    values: dict[str, int | None] = {}
    half = True
    for option in filter(None, text.split(",")):
        key, _, value = option.partition("=")
        if key == "shots" and value == "all":
            values[key] = None
        elif (key, value) == ("classes", "all"):
            half = False
        elif key in ("shots", "seed") and value.isdecimal() and int(value) >= (key == "shots"):
            values[key] = int(value)
        else:
            raise UserError(
                f"{name}: options are shots=<n or all>, seed=<n>, classes=all; got {option!r}", option="benchmark"
            )
    return Shots(**values, half=half)  # type: ignore[arg-type]


def draw_shots(images: Images, shots: int, generator: random.Random) -> list[tuple[str, int]]:
    """Draw `shots` images of every class, classes in order of appearance; all of a class that has fewer."""
    by_label: dict[int, list[tuple[str, int]]] = {}
    for path, label in images:
        by_label.setdefault(label, []).append((path, label))
    return [
        image for mine in by_label.values() for image in (generator.sample(mine, shots) if len(mine) >= shots else mine)
    ]


def base_classes(classes: int) -> int:
    """Return the number of base labels, counted from 0; all others are new."""
    return math.ceil(classes / 2)


def _draw(split: Split, shots: Shots) -> tuple[Images, Images]:
    """Draw training and validation images, over all classes."""
    if shots.shots is None:
        return split.train, split.val
    generator = random.Random(shots.seed)
    train = draw_shots(split.train, shots.shots, generator)
    return train, draw_shots(split.val, min(shots.shots, VAL_SHOTS), generator)


def _read_base_to_novel(name: str, base: str, shots: Shots, root: Path, allow_partial: bool) -> Benchmark:
    split = read_split(name, base, root, allow_partial)
    listing = Listing(name, len(split.names), allow_partial=allow_partial)
    split.expect(listing)
    limit = base_classes(len(split.names)) if shots.half else len(split.names)
    for part, drawn in zip(("train", "val"), _draw(split, shots), strict=True):
        mine = [image for image in drawn if image[1] < limit]
        listing.add("source", part, mine, folder=split.folder, listed_in=split.listed_in)
    listing.add("target", "test", split.test, folder=split.folder, listed_in=split.listed_in)
    unseen_C = torch.arange(len(split.names)) >= limit
    return _benchmark(name, f"{base}-{shots.slug}", split, unseen_C, listing, split.templates, halves=shots.half)


def _read_cross(name: str, base: str, shots: Shots, root: Path, allow_partial: bool) -> Benchmark:
    source = read_split(name, "imagenet", root, allow_partial)
    target = read_variant(base.removeprefix(CROSS), source, root)
    own = target or read_split(name, base.removeprefix(CROSS), root, allow_partial)
    seen = len(source.names)
    joint = source if target else source.followed_by(own)
    listing = Listing(name, len(joint.names), allow_partial=allow_partial)
    source.expect(listing, "train")
    own.expect(listing, "test")
    train, _ = _draw(source, shots)
    listing.add("source", "train", train, folder=source.folder, listed_in=source.listed_in, prefix="source/")
    offset = 0 if target else seen
    test = [(path, label + offset) for path, label in own.test]
    listing.add("target", "test", test, folder=own.folder, listed_in=own.listed_in, prefix="target/")
    unseen_C = torch.arange(len(joint.names)) >= seen
    own_classes = tuple(sorted({label for _, label in test})) if target else tuple(range(seen, len(joint.names)))
    return _benchmark(name, f"{base}-{shots.slug}", joint, unseen_C, listing, "single", target_classes=own_classes)


def _benchmark(
    name: str, slug: str, split: Split, unseen_C: torch.Tensor, listing: Listing, templates: str, **rules: Any
) -> Benchmark:
    return Benchmark(
        name=name,
        slug=slug,
        classes=ClassTable(names=split.names, wnids=split.wnids, unseen_RC=unseen_C[None]),
        images=listing.table(),
        templates=template_sets()[templates],
        default_clip=DEFAULT_CLIP,
        partial=listing.partial,
        **rules,
    )
