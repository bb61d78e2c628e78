"""CoOp's data sets from miniatures: split files, text lists, wnid folders, and the order of drawing and halving."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import FeatureOptions, UserError, prepare
from data_prep.benchmarks import BENCHMARKS, coop, coop_splits, get_benchmark
from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.benchmarks.wordnet_classes import ilsvrc_wnids
from data_prep.feature_store import load, load_target_labels

EUROSAT = {  # folder -> name, as the split file has them
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}
COUNTS = {"train": 20, "val": 6, "test": 3}  # per class
Split = dict[str, list[list[Any]]]


def write_eurosat(root: Path) -> Split:
    """Ten classes, listed in no order; the images are empty files."""
    split: Split = {part: [] for part in COUNTS}
    for label, (folder, name) in enumerate(EUROSAT.items()):
        (root / "eurosat" / "2750" / folder).mkdir(parents=True)
        for part, count in COUNTS.items():
            for _ in range(count):
                path = f"{folder}/{folder}_{sum(map(len, split.values()))}.jpg"
                (root / "eurosat" / "2750" / path).touch()
                split[part].append([path, label, name])
    for part in ("train", "val", "test"):
        random.Random(part).shuffle(split[part])
    write_split(root, split)
    return split


def write_split(root: Path, split: object) -> None:
    (root / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(split))


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniatures' counts in place of the published ones."""
    small = {"eurosat": (10, 200, 60, 30), "fgvc_aircraft": (3, 3, 3, 3), "imagenet": (1000, 6, 0, 3)}
    for key, (classes, train, val, test) in small.items():
        entry = coop_splits.SETS[key]._replace(classes=classes, train=train, val=val, test=test)
        monkeypatch.setitem(coop_splits.SETS, key, entry)
    for key, count in (("imagenetv2", 3), ("imagenet_a", 2)):
        monkeypatch.setitem(coop_splits.VARIANTS, key, (coop_splits.VARIANTS[key][0], count))


@pytest.fixture
def eurosat(tmp_path: Path, small_sets: None) -> Split:
    return write_eurosat(tmp_path)


def test_published_counts() -> None:
    assert {key: entry[3:7] for key, entry in coop_splits.SETS.items()} == {
        "imagenet": (1000, 1_281_167, 0, 50_000),
        "caltech101": (100, 4_128, 1_649, 2_465),
        "oxford_pets": (37, 2_944, 736, 3_669),
        "stanford_cars": (196, 6_509, 1_635, 8_041),
        "flowers102": (102, 4_093, 1_633, 2_463),
        "food101": (101, 50_500, 20_200, 30_300),
        "fgvc_aircraft": (100, 3_334, 3_333, 3_333),
        "sun397": (397, 15_880, 3_970, 19_850),
        "dtd": (47, 2_820, 1_128, 1_692),
        "eurosat": (10, 13_500, 5_400, 8_100),
        "ucf101": (101, 7_639, 1_898, 3_783),
    }
    assert sum(key in coop_splits.SETS for key in BENCHMARKS) == 11
    assert sum(key.startswith("imagenet-to-") for key in BENCHMARKS) == 14


def test_the_first_half_rounded_up_is_base() -> None:
    assert [coop.base_classes(c) for c in (10, 37, 47, 100, 101, 397, 1000)] == [5, 19, 24, 50, 51, 199, 500]


def test_shots_are_those_of_pythons_generator() -> None:
    images = [(f"{c}/{k}.jpg", c) for k in range(6) for c in (2, 0, 1)]
    drawn = coop.draw_shots(images, 2, random.Random(1))
    assert drawn == [("2/1.jpg", 2), ("2/4.jpg", 2), ("0/0.jpg", 0), ("0/2.jpg", 0), ("1/0.jpg", 1), ("1/3.jpg", 1)]
    assert coop.draw_shots(images[:3], 2, random.Random(1)) == images[:3]  # classes with fewer give all they have


def test_shots_are_drawn_over_all_classes_and_then_halved(tmp_path: Path, eurosat: Split) -> None:
    """The draws, written out as CoOp makes them: the module's generator, seeded once, train and then val."""
    random.seed(2)
    drawn: dict[str, list[str]] = {}
    for part, shots in (("train", 16), ("val", 4)):
        by_label: dict[int, list[str]] = {}
        for path, label, _ in eurosat[part]:
            by_label.setdefault(label, []).append(path)
        chosen = {label: random.sample(paths, shots) for label, paths in by_label.items()}
        drawn[part] = [path for label, paths in chosen.items() if label < 5 for path in paths]
    bench = get_benchmark("eurosat:seed=2", tmp_path)
    source, target = bench.domain("source"), bench.domain("target")
    assert source["key"].to_pylist() == drawn["train"] + drawn["val"]
    assert source["split"].to_pylist() == [0] * 80 + [1] * 20
    assert np.bincount(source["label"].to_numpy()).tolist() == [20] * 5
    assert target["key"].to_pylist() == [path for path, *_ in eurosat["test"]]
    assert target["split"].unique().to_pylist() == [2]
    assert bench.classes.names == tuple(EUROSAT.values())
    assert bench.classes.unseen_RC.tolist() == [[False] * 5 + [True] * 5]
    assert bench.templates == ("a centered satellite photo of {}.",)
    assert bench.slug == "eurosat-16-shots-seed-2"


def test_options(tmp_path: Path, eurosat: Split) -> None:
    assert coop.parse_options("x", "") == coop.Shots(shots=16, seed=1)
    assert coop.parse_options("x", "seed=2,classes=all") == coop.Shots(shots=16, seed=2, half=False)
    assert len(get_benchmark("eurosat:shots=all", tmp_path).domain("source")) == 5 * 26
    assert len(get_benchmark("eurosat:shots=1,seed=3", tmp_path).domain("source")) == 5 * 2
    for option in ("shots=0", "shots=some", "seed=-1", "way=5", "seed"):
        with pytest.raises(UserError, match=f"options are shots=<n or all>, seed=<n>, classes=all; got '{option}'"):
            get_benchmark(f"eurosat:{option}", tmp_path)
    with pytest.raises(UserError, match="got 'i2awa:shots=16'"):
        get_benchmark("i2awa:shots=16", tmp_path)


def test_features(
    tmp_path: Path, small_sets: None, write_image: Callable[..., None], without_ray: None, monkeypatch: Any
) -> None:
    monkeypatch.setitem(COUNTS, "train", 2)
    monkeypatch.setitem(COUNTS, "val", 1)
    split = write_eurosat(tmp_path)
    for path in (tmp_path / "eurosat" / "2750").glob("*/*"):
        write_image(path)
    cache = prepare(
        FeatureOptions(
            benchmark="eurosat:shots=2",
            clip=str(ASSETS / "clip"),
            data_root=tmp_path,
            cache_dir=tmp_path / "cache",
            allow_partial=True,
        )
    )
    features = load(cache)
    assert features.source_labels_I.max() == 4 and len(features.source.keys) == 5 * 3
    assert load_target_labels(cache).tolist() == [label for _, label, _ in split["test"]]
    assert features.partial == "20 of 200 train images; 10 of 60 val images"


def test_aircraft_is_read_from_text_lists(tmp_path: Path, small_sets: None) -> None:
    home = tmp_path / "fgvc_aircraft"
    (home / "images").mkdir(parents=True)
    (home / "variants.txt").write_text("707-320\nBoeing 717\nYak-42\n")
    for offset, part in enumerate(("train", "val", "test")):
        rows = [f"{7 * k + offset:07d} {v}" for k, v in enumerate(("Yak-42", "Boeing 717", "707-320"))]
        (home / f"images_variant_{part}.txt").write_text("\n".join(rows) + "\n")
        for row in rows:
            (home / "images" / f"{row[:7]}.jpg").touch()
    bench = get_benchmark("fgvc_aircraft", tmp_path)
    assert bench.classes.names == ("707-320", "Boeing 717", "Yak-42")
    assert bench.classes.unseen_RC.tolist() == [[False, False, True]]
    assert bench.domain("source")["label"].to_pylist() == [1, 0, 1, 0]
    assert bench.domain("target")["key"].to_pylist() == ["0000002.jpg", "0000009.jpg", "0000016.jpg"]
    assert bench.templates == ("a photo of a {}, a type of aircraft.",)
    (home / "images_variant_val.txt").write_text("0000001 Concorde\n")
    with pytest.raises(UserError, match="images_variant_val.txt line 1: 'Concorde' is not in variants.txt"):
        get_benchmark("fgvc_aircraft", tmp_path)


@pytest.fixture
def imagenet(tmp_path: Path, small_sets: None) -> Path:
    """Three of the classes have images; classnames.txt is not in label order."""
    home = tmp_path / "imagenet"
    wnids = ilsvrc_wnids()
    for label in (0, 1, 999):
        for part, count in (("train", 2), ("val", 1)):
            (home / "images" / part / wnids[label]).mkdir(parents=True)
            for k in range(count):
                (home / "images" / part / wnids[label] / f"{part}_{k}.JPEG").touch()
        (tmp_path / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / str(label)).mkdir(parents=True)
        (tmp_path / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / str(label) / "x.jpeg").touch()
    for label in (1, 999):
        (tmp_path / "imagenet-adversarial" / "imagenet-a" / wnids[label]).mkdir(parents=True)
        (tmp_path / "imagenet-adversarial" / "imagenet-a" / wnids[label] / "0.5_fox.jpg").touch()
    (tmp_path / "imagenet-adversarial" / "imagenet-a" / "README.txt").touch()
    lines = [f"{wnid} name of {wnid}" for wnid in reversed(wnids)]
    (home / "classnames.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_imagenet_is_read_from_wnid_folders(imagenet: Path) -> None:
    bench = get_benchmark("imagenet:shots=1", imagenet)
    assert bench.classes.wnids == ilsvrc_wnids()
    assert bench.classes.names[999] == "name of n15075141"
    assert bench.classes.unseen_RC.sum() == 500
    source, target = bench.domain("source"), bench.domain("target")
    assert (source["label"].to_pylist(), source["split"].to_pylist()) == ([0, 1], [0, 0])
    assert target["key"].to_pylist()[2] == "val/n15075141/val_0.JPEG"
    assert target["label"].to_pylist() == [0, 1, 999]
    (imagenet / "imagenet" / "classnames.txt").write_text("n01440764 tench\n")
    with pytest.raises(UserError, match="must have a line 'wnid name' for each class .*; n01443537 has none"):
        get_benchmark("imagenet", imagenet)


def test_variants_of_imagenet_have_its_labels(imagenet: Path) -> None:
    v2 = get_benchmark("imagenet-to-imagenetv2", imagenet)
    assert v2.domain("source")["label"].to_pylist() == [0, 0, 1, 1, 999, 999]
    assert v2.domain("target")["label"].to_pylist() == [0, 1, 999]
    a = get_benchmark("imagenet-to-imagenet_a", imagenet)
    assert a.domain("target")["label"].to_pylist() == [1, 999]
    assert len(a.classes.names) == 1000 and not a.classes.unseen_RC.any()
    with pytest.raises(UserError, match="imagenet_r's image folder is missing; looked for .*imagenet-rendition"):
        get_benchmark("imagenet-to-imagenet_r", imagenet)


def test_cross_dataset_appends_the_targets_classes(imagenet: Path) -> None:
    write_eurosat(imagenet)
    bench = get_benchmark("imagenet-to-eurosat", imagenet)
    assert bench.classes.names[1000:] == tuple(EUROSAT.values())
    assert bench.classes.unseen_RC.nonzero()[:, 1].tolist() == list(range(1000, 1010))
    assert sorted(set(bench.domain("target")["label"].to_pylist())) == list(range(1000, 1010))
    assert len(bench.domain("target")) == 30  # the whole test split


def altered(part: str, entry: list[Any], **others: Any) -> Callable[[Split], object]:
    """The split with its first entry of `part` replaced."""
    return lambda split: split | {part: [entry, *split[part][1:]]} | others


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda split: "{", "split_zhou_EuroSAT.json must have lists train, val and test; train, val, test missing"),
        (lambda split: {k: v for k, v in split.items() if k != "val"}, "lists train, val and test; val missing"),
        (lambda split: split | {"test": {}}, "lists train, val and test; test missing"),
        (altered("val", ["a.jpg", 0]), r"entries of val must be \[path, label, class name\]; got \['a.jpg', 0\]"),
        (altered("val", ["a.jpg", "0", "x"]), r"entries of val must be \[path, label, class name\]"),
        (altered("val", ["River/a.jpg", 8, "Rhine"]), "label 8 has two names, 'River' and 'Rhine'"),
        (altered("test", ["a.jpg", 10, "Moon"]), "labels must be 0 to C - 1, all of them trained on; see label 10"),
        (altered("test", ["a.jpg", -1, "Moon"]), "labels must be 0 to C - 1, all of them trained on; see label -1"),
        (altered("test", ["../../a.jpg", 8, "River"]), "image paths must stay inside .*2750; got ../../a.jpg"),
        (altered("test", ["River/none.jpg", 8, "River"]), "1 of the 30 target test images .*such as River/none.jpg"),
        (lambda split: split | {"val": []}, "has 0 val images; published are 60"),
        (lambda split: split | {"test": split["test"][1:]}, "has 29 test images; published are 30"),
        (lambda split: split | {"test": split["test"][:1] + split["test"][:29]}, "every image must be listed once"),
        (
            lambda s: {part: [row for row in s[part] if row[1] < 9] for part in s},
            r"has 9 classes; published are 10 \(allow_partial takes fewer\)",
        ),
    ],
)
def test_mistakes_in_a_split_file(tmp_path: Path, eurosat: Split, change: Callable, message: str) -> None:
    write_split(tmp_path, change(eurosat))
    with pytest.raises(UserError, match=message) as error:
        get_benchmark("eurosat", tmp_path)
    assert "\n" not in str(error.value)


def test_all_classes_are_trained_on_when_another_set_is_the_test(tmp_path: Path, eurosat: Split) -> None:
    half, whole = get_benchmark("eurosat", tmp_path), get_benchmark("eurosat:classes=all", tmp_path)
    assert half.halves and half.classes.unseen_RC.sum() == 5 and not whole.halves and not whole.classes.unseen_RC.any()
    bench = get_benchmark("eurosat->icons2emoji", tmp_path)
    assert set(bench.domain("source")["label"].to_pylist()) == set(range(10))
    assert len(bench.domain("source")) == len(whole.domain("source")) > len(half.domain("source"))
    assert bench.target_classes == tuple(range(10, 238)) and not bench.halves


def test_missing_files_are_named(tmp_path: Path, eurosat: Split) -> None:
    path = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
    path.write_text("{")
    with pytest.raises(UserError, match="split_zhou_EuroSAT.json must be a JSON file: "):
        get_benchmark("eurosat", tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="eurosat's split is missing; looked for .*/eurosat/split_zhou_EuroSAT.json"):
        get_benchmark("eurosat", tmp_path)
    with pytest.raises(UserError, match="dtd's folder is missing; looked for .*/dtd"):
        get_benchmark("dtd", tmp_path)


def test_training_images_are_not_test_images(tmp_path: Path, eurosat: Split) -> None:
    base = next(row for row in eurosat["train"] if row[1] == 0)
    eurosat["test"][0] = base
    write_split(tmp_path, eurosat)
    with pytest.raises(UserError, match=f"every image must be listed once; {base[0]} is there twice"):
        get_benchmark("eurosat:shots=all", tmp_path)


def test_damaged_split_files_never_end_in_a_traceback(tmp_path: Path, eurosat: Split) -> None:
    path = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
    content, generator = path.read_bytes(), random.Random(0)
    for _ in range(40):
        start = generator.randrange(len(content))
        noise = generator.randbytes(generator.randrange(1, 40))
        path.write_bytes(content[:start] + generator.choice([b"", noise, noise + content[start + len(noise) :]]))
        with pytest.raises(UserError) as error:
            get_benchmark("eurosat", tmp_path)
        assert "\n" not in str(error.value)
