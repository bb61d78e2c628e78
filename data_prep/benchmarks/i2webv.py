"""I2WebV (UODTN, Zhuo et al., CVPR 2019): from ILSVRC-2012's photographs of 1,000 classes to web images of 5,000.

    <data-root>/imagenet/images/train/<wnid>/*.JPEG     source: 1,281,167 images (also ILSVRC2012/train, train)
    <data-root>/webvision/info/val_filelist.txt         "file label": the validation images of WebVision 2.0
    <data-root>/webvision/info/synsets.txt              its line k begins with the wnid of label k
    <data-root>/webvision/val_images_256/<file>         target: some 290,000 images (also val_images_resized)

Source: image-net.org; target: WebVision 2.0, data.vision.ee.ethz.ch/cvl/webvision. The class order is UODTN's
(data_prep/assets/CLASSES.md), ILSVRC's classes first, sorted; the list's labels are carried over to it by wnid. The
4,000 further classes are unseen. No split was published: source images are train, target images test.
"""

from pathlib import Path

import torch

from data_prep.benchmarks.base import Benchmark
from data_prep.benchmarks.listing import Listing, class_folders, find_place, need_root, read_labelled, read_lines
from data_prep.benchmarks.wordnet_classes import ILSVRC_CLASSES, ilsvrc_wnids, webvision_classes
from data_prep.errors import UserError
from data_prep.feature_store import ClassTable
from data_prep.templates import template_sets

PUBLISHED_SOURCE = 1_281_167
SOURCE_FOLDERS = ("imagenet/images/train", "ILSVRC2012/train", "train")
TARGET_FOLDERS = ("webvision/val_images_256", "webvision/val_images_resized")
DEFAULT_CLIP = "openai/clip-vit-base-patch32"


def read(name: str, data_root: Path | None, allow_partial: bool = False) -> Benchmark:
    """Read the benchmark. Raises UserError for whatever is missing or contradicts the published lists."""
    root = need_root(name, data_root)
    classes = webvision_classes()
    listing = Listing(name, len(classes), allow_partial=allow_partial)
    folder = find_place(root, f"{name}'s source image folder", *SOURCE_FOLDERS)
    images = class_folders(folder, ilsvrc_wnids())
    listing.expect("source images", len(images), PUBLISHED_SOURCE, folder)
    listing.add("source", "train", images, folder=folder, listed_in=folder, prefix="source/")

    listed_in = find_place(root, f"{name}'s target list", "webvision/info/val_filelist.txt")
    synsets = find_place(root, f"{name}'s class list", "webvision/info/synsets.txt")
    target = _read_list(listed_in, _wnids(synsets), synsets)
    listing.expect("target classes", len({label for _, label in target}), len(classes), listed_in)
    folder = find_place(root, f"{name}'s target image folder", *TARGET_FOLDERS)
    listing.add("target", "test", target, folder=folder, listed_in=listed_in, prefix="target/")
    return Benchmark(
        name=name,
        slug=name,
        classes=ClassTable(
            names=tuple(entry.name for entry in classes),
            wnids=tuple(entry.wnid for entry in classes),
            unseen_RC=(torch.arange(len(classes)) >= ILSVRC_CLASSES)[None],
        ),
        images=listing.table(),
        templates=template_sets()["single"],
        default_clip=DEFAULT_CLIP,
        partial=listing.partial,
    )


def _wnids(path: Path) -> list[str]:
    return [line.split(maxsplit=1)[0].rstrip(",") for line in read_lines(path) if line]


def _read_list(path: Path, wnids: list[str], synsets: Path) -> list[tuple[str, int]]:
    label_of = {entry.wnid: label for label, entry in enumerate(webvision_classes())}
    images = []
    for number, image, label in read_labelled(path):
        if not 0 <= label < len(wnids):
            raise UserError(f"{path} line {number}: labels must be 0 to {len(wnids) - 1}, by {synsets}; got {label}")
        if wnids[label] not in label_of:
            raise UserError(f"{synsets} line {label + 1}: {wnids[label]} is no class of WebVision 2.0")
        images.append((image, label_of[wnids[label]]))
    return images
