"""I2AwA (UODTN, Zhuo et al., CVPR 2019): from web images of 40 animals to AwA2's photographs of 50.

    <data-root>/WEB_3D3_2.txt, new_AwA2.txt           lists "path label" (also looked for in data/ and UODTN/data/)
    <data-root>/3D2/<name>-<wnid>/<k>.<ext>           source: 2,970 images, 40 classes (jpg, png, jpeg, gif)
    <data-root>/Animals_with_Attributes2/JPEGImages/<name>/<file>.jpg       target: 37,322 images, 50 classes

Lists and the link to the source images: github.com/junbaoZHUO/UODTN; target: AwA2-data.zip of cvml.ist.ac.at/AwA2.
The lists' paths are of another machine: they are matched by their last two components, a class folder and a file.

Labels are those of the lists, which is the order of the classes in UODTN's graph (data_prep/assets/CLASSES.md). The
repository's split file lists the classes in another order, and counting along that one mislabels 24 of them; so each
line's label is checked against its class folder. No split was published: all source images are train, all target
images test (they are adapted to without labels, and scored).
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

from data_prep.benchmarks.base import Benchmark
from data_prep.benchmarks.listing import Listing, find_place, need_root, read_labelled
from data_prep.benchmarks.wordnet_classes import awa2_classes, ilsvrc_wnids
from data_prep.errors import UserError
from data_prep.feature_store import ClassTable
from data_prep.templates import template_sets

KNOWN = 40
PUBLISHED = {"source": 2970, "target": 37_322}
LISTS = {"source": "WEB_3D3_2.txt", "target": "new_AwA2.txt"}
LIST_FOLDERS = ("", "data/", "UODTN/data/")
FOLDERS = {"source": ("3D2", "I2AwA/3D2", "3D/3D2"), "target": ("Animals_with_Attributes2/JPEGImages", "JPEGImages")}
DEFAULT_CLIP = "openai/clip-vit-base-patch32"


def read(name: str, data_root: Path | None, allow_partial: bool = False) -> Benchmark:
    """Read the benchmark. Raises UserError for whatever is missing or contradicts the published lists."""
    root = need_root(name, data_root)
    classes = awa2_classes()
    listing = Listing(name, len(classes), allow_partial=allow_partial)
    for domain, split in (("source", "train"), ("target", "test")):
        listed_in = find_place(root, f"{name}'s {domain} list", *(f"{place}{LISTS[domain]}" for place in LIST_FOLDERS))
        folder = find_place(root, f"{name}'s {domain} image folder", *FOLDERS[domain])
        images = list(_read_list(listed_in))
        listing.expect(f"{domain} images", len(images), PUBLISHED[domain], listed_in)
        listing.add(domain, split, images, folder=folder, listed_in=listed_in, prefix=f"{domain}/")
    return Benchmark(
        name=name,
        slug=name,
        classes=ClassTable(
            names=tuple(entry.name for entry in classes),
            wnids=tuple(entry.wnid for entry in classes),
            unseen_RC=(torch.arange(len(classes)) >= KNOWN)[None],
        ),
        images=listing.table(),
        templates=template_sets()["single"],
        default_clip=DEFAULT_CLIP,
        auxiliary_wnids=ilsvrc_wnids(),
        partial=listing.partial,
    )


def _read_list(path: Path) -> Iterator[tuple[str, int]]:
    label_of = {entry.name: label for label, entry in enumerate(awa2_classes())}
    for number, image, label in read_labelled(path):
        folder, file = ("", *PurePosixPath(image).parts)[-2:]
        class_name = re.sub(r"-n\d{8}$", "", folder).replace("+", " ")
        if class_name not in label_of:
            raise UserError(f"{path} line {number}: the image's folder must be that of a class; got {folder!r}")
        if label != label_of[class_name]:
            raise UserError(f"{path} line {number}: {class_name} has label {label_of[class_name]}; got {label}")
        yield f"{folder}/{file}", label
