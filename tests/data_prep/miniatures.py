"""Every published layout in miniature, with a few decodable images per class: what `--data-root` would hold.

One root serves all benchmarks. Counts fall short of the published ones, so they are read with --allow-partial.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data_prep.benchmarks import BENCHMARKS, coop, coop_splits, i2webv, icons2emoji, xlsa17
from data_prep.benchmarks.wordnet_classes import WordNetClass, awa2_classes, webvision_classes

IMAGENET = webvision_classes()[:8]
WEB = (*IMAGENET, WordNetClass("horse", "n02374451"), WordNetClass("rat", "n02331046"))
ANIMALS = ("antelope", "grizzly bear", "killer whale", "beaver", "ox", "zebra")
FOLDER = "folder:mine"
EMBEDDED = ("icons2emoji", icons2emoji.GZSL, icons2emoji.BACK)
NAMES = (*(name for name in BENCHMARKS if name not in EMBEDDED), FOLDER)
"""All that need --data-root."""
THINGS = ("anchor", "banana", "bell", "bicycle", "boot", "bridge", "camera", "candle")  # half of them base


def write_image(path: Path, size: tuple[int, int] = (24, 18)) -> None:
    """A few random pixels, enlarged: no two files alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path)


def write_all(root: Path) -> None:
    """Every layout."""
    write_i2awa(root)
    write_i2webv(root)
    for name in xlsa17.SETS:
        write_xlsa17(root, name)
    for key in coop_splits.SETS:
        {"imagenet": write_imagenet, "fgvc_aircraft": write_aircraft}.get(key, write_split_file)(root, key)
    write_folder(root / "mine")


def write_folder(home: Path) -> None:
    """Photographs and drawings of eight classes, the last two unseen."""
    for name in THINGS:
        for k in range(4):
            write_image(home / "target" / name / f"{k}.jpg")
            write_image(home / "source" / name / f"{k}.png")
    rows = [f"{name},-,{int(c < 6)}" for c, name in enumerate(THINGS)]
    (home / "classes.csv").write_text("\n".join(["name,wnid,seen", *rows]) + "\n")


def shorten_class_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """ILSVRC has eight classes, WebVision ten: no test needs the texts of thousands."""
    for module in (coop_splits, i2webv):
        monkeypatch.setattr(module, "ilsvrc_wnids", lambda: tuple(entry.wnid for entry in IMAGENET))
    monkeypatch.setattr(i2webv, "webvision_classes", lambda: WEB)
    monkeypatch.setattr(i2webv, "ILSVRC_CLASSES", len(IMAGENET))


def write_i2awa(root: Path) -> None:
    lines: dict[str, list[str]] = {"WEB_3D3_2.txt": [], "new_AwA2.txt": []}
    for label, (name, wnid) in enumerate(awa2_classes()):
        spelled = name.replace(" ", "+")
        for k in range(3 if label < 40 else 0):
            file = f"{spelled}-{wnid}/{k}.png"
            write_image(root / "3D2" / file)
            lines["WEB_3D3_2.txt"].append(f"/media/someone/3D/3D2/{file} {label}")
        file = f"{spelled}/{spelled}_10001.jpg"
        write_image(root / "Animals_with_Attributes2" / "JPEGImages" / file)
        lines["new_AwA2.txt"].append(f"/media/someone/AwA2/{file} {label}")
    for name, content in lines.items():
        (root / name).write_text("\n".join(content) + "\n")


def write_i2webv(root: Path) -> None:
    """The target only: the source is ImageNet's."""
    info = root / "webvision" / "info"
    info.mkdir(parents=True)
    (info / "synsets.txt").write_text("\n".join(f"{wnid} {name}" for name, wnid in WEB))
    files = [(f"val{i:06d}.jpg", i % len(WEB)) for i in range(2 * len(WEB))]
    (info / "val_filelist.txt").write_text("\n".join(f"{file} {label}" for file, label in files))
    for file, _ in files:
        write_image(root / "webvision" / "val_images_256" / file)


def write_xlsa17(root: Path, name: str) -> None:
    """Six classes, the last two unseen; of each six images, of seen ones two for the test."""
    published = xlsa17.SETS[name]
    patterns = {"awa2": "{c}/{k}.jpg", "cub": "{n:03d}.{c}/{k}.jpg", "sun": "a/{c}/{k}.jpg", "flo": "image_{n}{k}.jpg"}
    names = [name.replace(" ", "+") for name in ANIMALS]
    listed = [(c, patterns[name].format(c=names[c], n=c + 1, k=k)) for c in range(6) for k in range(6)]
    for _, file in listed:
        write_image(root / published.images[0] / file)
    tables = root / "xlsa17" / "data" / published.folder
    tables.mkdir(parents=True)
    res101 = {
        "labels": np.array([[c + 1.0] for c, _ in listed]),
        "image_files": np.array([[f"/BS/someone/{published.images[0]}/{file}"] for _, file in listed], dtype=object),
    }
    savemat(tables / "res101.mat", res101)
    index = np.arange(1, 37)
    splits = {
        "allclasses_names": np.array([[c] for c in names], dtype=object),
        "trainval_loc": index[(index <= 24) & (index % 6 < 4)][:, None],
        "test_seen_loc": index[(index <= 24) & (index % 6 >= 4)][:, None],
        "test_unseen_loc": index[index > 24][:, None],
    }
    savemat(tables / "att_splits.mat", splits)
    if name == "flo":
        (root / "Flowers" / "cat_to_name.json").write_text(json.dumps({str(c + 1): n for c, n in enumerate(names)}))


def write_split_file(root: Path, key: str) -> None:
    published = coop_splits.SETS[key]
    split: dict[str, list[tuple[str, int, str]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(THINGS):
        for k, part in enumerate(("train", "train", "train", "val", "test")):
            split[part].append((f"{name}/{k}.jpg", label, name))
            write_image(root / published.folder / published.images / split[part][-1][0])
    (root / published.folder / f"split_zhou_{published.json}.json").write_text(json.dumps(split))


def write_aircraft(root: Path, key: str) -> None:
    home = root / key
    for offset, part in enumerate(("train", "val", "test")):
        rows = [f"{10 * k + offset:07d} {THINGS[k % 8]}" for k in range(16)]
        for row in rows:
            write_image(home / "images" / f"{row[:7]}.jpg")
        (home / f"images_variant_{part}.txt").write_text("\n".join(rows) + "\n")
    (home / "variants.txt").write_text("\n".join(THINGS) + "\n")


def write_imagenet(root: Path, key: str) -> None:
    """Its folders, and those of V2, Sketch, A and R."""
    for label, (_, wnid) in enumerate(IMAGENET):
        for k in range(4):
            write_image(root / key / "images" / "train" / wnid / f"{wnid}_{k}.JPEG")
        write_image(root / key / "images" / "val" / wnid / "val.JPEG")
        for variant, (place, _) in coop_splits.VARIANTS.items():
            write_image(root / place / (str(label) if variant == "imagenetv2" else wnid) / "x.jpg")
    (root / key / "classnames.txt").write_text("\n".join(f"{wnid} {name}" for name, wnid in IMAGENET) + "\n")


def is_adaptation(name: str) -> bool:
    """Whether source and target are different domains with classes in common."""
    return name in ("i2awa", "i2webv", FOLDER) or name.removeprefix(coop.CROSS) in coop_splits.VARIANTS
