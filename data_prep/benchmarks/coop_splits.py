"""The published lists of CoOp's data sets: class names, and images of train, val and test (see coop.py)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from data_prep.benchmarks.listing import Images, Listing, class_folders, find_place, read_json, read_lines
from data_prep.benchmarks.wordnet_classes import ilsvrc_wnids
from data_prep.errors import UserError


class CoopSet(NamedTuple):
    """A data set as CoOp publishes it."""

    folder: str
    """Folder below the root of all data sets."""
    images: str
    """Image folder below that."""
    json: str
    """Split file; "" where there is none."""
    classes: int
    train: int
    val: int
    test: int
    templates: str = "single"


SETS = {
    "imagenet": CoopSet("imagenet", "images", "", 1000, 1_281_167, 0, 50_000),
    "caltech101": CoopSet("caltech-101", "101_ObjectCategories", "Caltech101", 100, 4_128, 1_649, 2_465),
    "oxford_pets": CoopSet("oxford_pets", "images", "OxfordPets", 37, 2_944, 736, 3_669, "pets"),
    "stanford_cars": CoopSet("stanford_cars", "", "StanfordCars", 196, 6_509, 1_635, 8_041),
    "flowers102": CoopSet("oxford_flowers", "jpg", "OxfordFlowers", 102, 4_093, 1_633, 2_463, "flowers"),
    "food101": CoopSet("food-101", "images", "Food101", 101, 50_500, 20_200, 30_300, "food"),
    "fgvc_aircraft": CoopSet("fgvc_aircraft", "images", "", 100, 3_334, 3_333, 3_333, "aircraft"),
    "sun397": CoopSet("sun397", "SUN397", "SUN397", 397, 15_880, 3_970, 19_850),
    "dtd": CoopSet("dtd", "images", "DescribableTextures", 47, 2_820, 1_128, 1_692, "texture"),
    "eurosat": CoopSet("eurosat", "2750", "EuroSAT", 10, 13_500, 5_400, 8_100, "satellite"),
    "ucf101": CoopSet("ucf101", "UCF-101-midframes", "UCF101", 101, 7_639, 1_898, 3_783, "action"),
}
VARIANTS = {
    "imagenetv2": ("imagenetv2/imagenetv2-matched-frequency-format-val", 10_000),
    "imagenet_sketch": ("imagenet-sketch/images", 50_889),
    "imagenet_a": ("imagenet-adversarial/imagenet-a", 7_500),
    "imagenet_r": ("imagenet-rendition/imagenet-r", 30_000),
}
PARTS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Classes and images of a data set, as its lists on disk name them."""

    names: tuple[str, ...]
    """(C,) class names, spaces for underscores."""
    wnids: tuple[str | None, ...]
    """(C,)"""
    train: Images
    """Paths below `folder`, and labels."""
    val: Images
    test: Images
    folder: Path
    """The image folder."""
    listed_in: Path
    """Where the lists were read."""
    published: dict[str, int]
    """Images of each part."""
    templates: str
    """Name of the template set CoOp's zero-shot CLIP uses."""

    def expect(self, listing: Listing, *parts: str) -> None:
        """Compare the number of images of `parts` (all, if none is given) with the published one."""
        for part in parts or PARTS:
            listing.expect(f"{part} images", len(getattr(self, part)), self.published[part], self.listed_in)

    def followed_by(self, other: "Split") -> "Split":
        """Append the classes of `other` to those of this split."""
        return replace(self, names=self.names + other.names, wnids=self.wnids + other.wnids)


def read_split(name: str, key: str, root: Path, allow_partial: bool) -> Split:
    """Read the lists of SETS[key]. Raises UserError for missing or malformed files, and another number of classes."""
    published = SETS[key]
    home = find_place(root, f"{key}'s folder", published.folder)
    folder = find_place(home, f"{key}'s image folder", published.images)
    wnids: tuple[str | None, ...] | None = None
    if key == "imagenet":
        listed_in = find_place(home, f"{key}'s class names", "classnames.txt")
        names, wnids = _read_class_names(listed_in)
        train, test = ([(f"{d}/{p}", c) for p, c in class_folders(folder / d, wnids)] for d in ("train", "val"))
        # CoOp evaluates on ImageNet's validation images, and has no others to validate on.
        parts: dict[str, Images] = {"train": train, "val": [], "test": test}
    elif key == "fgvc_aircraft":
        listed_in = find_place(home, f"{key}'s class names", "variants.txt")
        names = [line for line in read_lines(listed_in) if line]
        parts = {part: _read_variants(home / f"images_variant_{part}.txt", names) for part in PARTS}
    else:
        listed_in = find_place(home, f"{key}'s split", f"split_zhou_{published.json}.json")
        names, parts = _read_split_file(listed_in)
    if len(names) != published.classes and not (allow_partial and len(names) < published.classes):
        raise UserError(
            f"{name}: {listed_in} has {len(names)} classes; published are {published.classes}"
            f"{' (allow_partial takes fewer)' if len(names) < published.classes else ''}",
            option="benchmark",
        )
    return Split(
        names=tuple(n.replace("_", " ") for n in names),
        wnids=wnids or (None,) * len(names),
        **parts,
        folder=folder,
        listed_in=listed_in,
        published={part: getattr(published, part) for part in PARTS},
        templates=published.templates,
    )


def read_variant(key: str, imagenet: Split, root: Path) -> Split | None:
    """Read test images of ImageNet-V2, -Sketch, -A or -R with ImageNet's labels; None if `key` is none of these."""
    if key not in VARIANTS:
        return None
    place, count = VARIANTS[key]
    folder = find_place(root, f"{key}'s image folder", place)
    # V2's folders are named by label, the others by wnid. -A and -R have 200 of the classes.
    names = [str(c) for c in range(len(imagenet.names))] if key == "imagenetv2" else ilsvrc_wnids()
    return replace(
        imagenet,
        train=[],
        val=[],
        test=class_folders(folder, names),
        folder=folder,
        listed_in=folder,
        published={"test": count},
    )


def _read_class_names(path: Path) -> tuple[list[str], tuple[str, ...]]:
    """Read names in the order of the sorted wnids: that is the label order, whatever the order of the file."""
    name_of = dict(line.split(" ", 1) for line in read_lines(path) if " " in line)
    missing = [wnid for wnid in ilsvrc_wnids() if wnid not in name_of]
    if missing:
        raise UserError(f"{path} must have a line 'wnid name' for each class of ILSVRC-2012; {missing[0]} has none")
    return [name_of[wnid] for wnid in ilsvrc_wnids()], ilsvrc_wnids()


def _read_variants(path: Path, names: list[str]) -> Images:
    label_of = {name: label for label, name in enumerate(names)}
    images = []
    for number, line in enumerate(read_lines(path), start=1):
        image, _, variant = line.partition(" ")
        if line and variant not in label_of:
            raise UserError(f"{path} line {number}: {variant!r} is not in variants.txt")
        if line:
            images.append((f"{image}.jpg", label_of[variant]))
    return images


def _read_split_file(path: Path) -> tuple[list[str], dict[str, Images]]:
    """Read class names by label and images of a split_zhou_*.json."""
    content = read_json(path)
    missing = [part for part in PARTS if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if missing:
        raise UserError(f"{path} must have lists train, val and test; {', '.join(missing)} missing")
    name_of: dict[int, str] = {}
    parts: dict[str, Images] = {}
    for part in PARTS:
        for entry in content[part]:
            match entry:
                case [str(), int() as label, str() as name] if name_of.setdefault(label, name) == name:
                    continue
                case [str(), int() as label, str() as name]:
                    raise UserError(f"{path}: label {label} has two names, {name_of[label]!r} and {name!r}")
            raise UserError(f"{path}: entries of {part} must be [path, label, class name]; got {str(entry)[:80]}")
        parts[part] = [(entry[0], entry[1]) for entry in content[part]]
    trained = {label for _, label in parts["train"]}
    if trained != set(range(len(trained))) or trained != set(name_of):
        odd = sorted(set(name_of) ^ set(range(len(name_of))) or set(name_of) - trained)
        raise UserError(f"{path}: labels must be 0 to C - 1, all of them trained on; see label {odd[0]}")
    return [name_of[label] for label in range(len(name_of))], parts
