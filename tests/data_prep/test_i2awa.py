"""I2AwA and I2WebV from miniatures in their published layouts."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep import FeatureOptions, UserError, prepare
from data_prep.benchmarks import get_benchmark, i2awa, i2webv
from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.benchmarks.wordnet_classes import WordNetClass, ilsvrc_wnids, webvision_classes
from data_prep.cache_build import inputs_of
from data_prep.checkpoint import find_checkpoint
from data_prep.feature_store import load, load_target_labels
from data_prep.image_hashes import image_contents
from data_prep.manifest import fingerprint, read_manifest
from data_prep.wordnet import wordnet
from data_prep.wordnet_graph import build_graph

DATA = Path(__file__).parent / "data"
NAMES = (
    "killer whale", "beaver", "dalmatian", "persian cat", "german shepherd", "siamese cat", "skunk", "tiger",
    "hippopotamus", "leopard", "spider monkey", "gorilla", "ox", "chimpanzee", "hamster", "chihuahua", "weasel",
    "otter", "zebra", "giant panda", "pig", "lion", "polar bear", "collie", "mole", "elephant", "fox", "squirrel",
    "rabbit", "wolf", "buffalo", "cow", "deer", "mouse", "humpback whale", "antelope", "grizzly bear", "rhinoceros",
    "raccoon", "moose", "sheep", "dolphin", "bat", "seal", "blue whale", "rat", "horse", "walrus", "giraffe", "bobcat",
)  # fmt: skip
SUFFIXES = ("jpg", "png", "gif", "jpeg")
SOURCE, TARGET = "WEB_3D3_2.txt", "new_AwA2.txt"
WriteImage = Callable[..., None]


@pytest.fixture
def root(tmp_path: Path, write_image: WriteImage, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One image per class and domain, listed by paths of another machine, classes in no order."""
    with (DATA / "i2awa_classes.csv").open() as file:
        wnids = [row["wnid"] for row in csv.DictReader(file)]
    source, target = [], []
    for label, (name, wnid) in enumerate(zip(NAMES, wnids, strict=True)):
        spelled = name.replace(" ", "+")
        if label < 40:
            file_name = f"{spelled}-{wnid}/{label}.{SUFFIXES[label % 4]}"
            write_image(tmp_path / "3D2" / file_name, "CMYK" if label % 4 == 0 else "RGB")
            source.append(f"/media/someone/SSD/3D/3D2/{file_name} {label}")
        file_name = f"{spelled}/{spelled}_10001.jpg"
        write_image(tmp_path / "Animals_with_Attributes2" / "JPEGImages" / file_name)
        target.append(f"/media/someone/SSD/AWA2/data/AwA2/{file_name} {label}")
    (tmp_path / SOURCE).write_text("\n".join(sorted(source)) + "\n")
    (tmp_path / TARGET).write_text("\n".join(target) + "\n")
    monkeypatch.setattr(i2awa, "PUBLISHED", {"source": 40, "target": 50})
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_published_facts() -> None:
    assert i2awa.PUBLISHED == {"source": 2970, "target": 37_322}
    assert len(webvision_classes()) == 5000 == len({entry.wnid for entry in webvision_classes()})
    assert list(ilsvrc_wnids()) == (DATA / "ilsvrc2012_wnids.txt").read_text().split()


def test_labels_domains_and_splits(root: Path) -> None:
    bench = get_benchmark("i2awa", root)
    assert bench.classes.names == NAMES
    assert bench.classes.unseen_RC.tolist() == [[False] * 40 + [True] * 10]
    source, target = bench.domain("source"), bench.domain("target")
    assert sorted(source["label"].to_pylist()) == list(range(40))
    assert target["label"].to_pylist() == list(range(50))
    assert source["key"][0].as_py() == "source/antelope-n02419796/35.jpeg" and source["label"][0].as_py() == 35
    assert (set(source["split"].to_pylist()), set(target["split"].to_pylist())) == ({0}, {2})
    assert bench.templates == ("a photo of a {}.",)
    assert bench.partial == ""


def test_the_graph_is_the_peers(root: Path) -> None:
    bench = get_benchmark("i2awa", root)
    graph = build_graph(wordnet(), bench.classes.names, bench.classes.wnids, bench.auxiliary_wnids)
    with (DATA / "i2awa_graph_edges.csv").open() as file:
        expected = {(row["child"], row["parent"]) for row in csv.DictReader(file)}
    assert {(graph.wnids[child], graph.wnids[parent]) for child, parent in graph.edges_E2} == expected
    assert (len(graph.wnids), len(expected)) == (255, 257)


def test_features_of_a_partial_benchmark_say_so(root: Path, tmp_path: Path, without_ray: None) -> None:
    (root / "3D2" / "zebra-n02391049" / "18.gif").unlink()
    with pytest.raises(UserError, match=r"1 of the 40 source train images listed in .*3_2.txt are missing, such as ze"):
        get_benchmark("i2awa", root)
    cache = prepare(
        FeatureOptions(
            benchmark="i2awa",
            clip=str(ASSETS / "clip"),
            data_root=root,
            cache_dir=tmp_path / "cache",
            allow_partial=True,
            templates="pets",
        )
    )
    features = load(cache)
    assert (len(features.source.keys), len(features.target.keys)) == (39, 50)  # GIFs, PNGs and CMYK JPEGs included
    assert load_target_labels(cache).tolist() == list(range(50))
    assert len(features.graph.node_wnids) == 255
    assert features.partial == "1 of 40 source train images not on disk"
    assert features.partial == read_manifest(cache).partial
    assert features.templates == ("a photo of a {}, a type of pet.",)


def test_a_partial_benchmark_has_a_fingerprint_of_its_own(root: Path) -> None:
    checkpoint, bench = find_checkpoint(ASSETS / "clip"), get_benchmark("i2awa", root)
    contents = image_contents(bench.images)
    whole, part = (inputs_of(b, checkpoint, contents) for b in (bench, replace(bench, partial="no zebra")))
    assert "partial" not in whole and fingerprint(whole) != fingerprint(part)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda r: (r / SOURCE).unlink(), "i2awa's source list is missing; looked for .*UODTN/data/WEB_3D3_2.txt"),
        (lambda r: (r / "3D2").rename(r / "images"), "i2awa's source image folder is missing; looked for .*/3D2"),
        # Label 23 is what counting along the repository's split file gives the otter.
        (lambda r: edit(r / TARGET, "otter_10001.jpg 17", "otter_10001.jpg 23"), "line 18: otter has label 17; got 23"),
        (lambda r: edit(r / TARGET, "zebra_10001.jpg 18", "zebra_10001.jpg 99"), "zebra has label 18; got 99"),
        (lambda r: edit(r / TARGET, "/ox/", "/okapi/"), "folder must be that of a class; got 'okapi'"),
        (lambda r: edit(r / TARGET, "/ox/", "/../"), "folder must be that of a class; got '..'"),
        (lambda r: edit(r / TARGET, "ox_10001.jpg 12", "ox_10001.jpg"), "line 13 must be an image path, a space and a"),
        (lambda r: (r / TARGET).write_bytes(b"\xff\xfe\0"), "new_AwA2.txt must be a text file"),
        (lambda r: edit(r / TARGET, "\n", "\n/a/AwA2/ox/ox_10001.jpg 12\n"), "has 51 target images; published are 50"),
        (lambda r: edit(r / TARGET, "fox/fox_10001.jpg 26", "ox/ox_10001.jpg 12"), "listed once; ox/ox_10001.jpg is"),
        (
            lambda r: edit(r / SOURCE, "/m", "#/m") or (r / SOURCE).write_text(""),
            "has 0 source images; published",
        ),
    ],
)
def test_mistakes_are_one_clear_line(root: Path, mistake: Callable[[Path], object], message: str) -> None:
    mistake(root)
    with pytest.raises(UserError, match=message) as error:
        get_benchmark("i2awa", root)
    assert "\n" not in str(error.value)


def test_broken_images_are_one_clear_line(root: Path, tmp_path: Path, without_ray: None) -> None:
    bat = root / "Animals_with_Attributes2" / "JPEGImages" / "bat" / "bat_10001.jpg"
    content = bat.read_bytes()

    def build() -> None:
        prepare(
            FeatureOptions(benchmark="i2awa", clip=str(ASSETS / "clip"), data_root=root, cache_dir=tmp_path / "cache")
        )

    bat.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        UserError, match=r"1 of 90 images cannot be read .*: target/bat/bat_10001.jpg \([Tt]runcated.*\)$"
    ):
        build()
    bat.write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 90 images cannot be read .*: target/bat/bat_10001.jpg \(empty file\)$"):
        build()


def test_data_root_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^data_root must be the folder with images and lists of i2awa, got none"):
        get_benchmark("i2awa")
    with pytest.raises(UserError, match="^data_root must be a folder; got .*nowhere"):
        get_benchmark("i2awa", tmp_path / "nowhere")


CLASSES = (
    WordNetClass("tench", "n01440764"),
    WordNetClass("goldfish", "n01443537"),
    WordNetClass("horse", "n02374451"),
    WordNetClass("rat", "n02331046"),
)


@pytest.fixture
def webv(tmp_path: Path, write_image: WriteImage, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ILSVRC's folders, and WebVision's list with labels by its own synsets.txt, which has another order here."""
    for wnid in ("n01440764", "n01443537"):
        for k in range(2):
            write_image(tmp_path / "imagenet" / "images" / "train" / wnid / f"{wnid}_{k}.JPEG", "CMYK" if k else "RGB")
    (tmp_path / "webvision" / "info").mkdir(parents=True)
    lines = ("n02331046 rat", "n01443537 goldfish, Carassius auratus", "n02374451 horse", "n01440764 tench")
    (tmp_path / "webvision" / "info" / "synsets.txt").write_text("\n".join(lines))
    (tmp_path / "webvision" / "info" / "val_filelist.txt").write_text(
        "\n".join(f"val{label:06d}.jpg {label}" for label in range(4))
    )
    for k in range(4):
        write_image(tmp_path / "webvision" / "val_images_256" / f"val{k:06d}.jpg")
    for module, name, value in (
        (i2webv, "webvision_classes", lambda: CLASSES),
        (i2webv, "ilsvrc_wnids", lambda: ("n01440764", "n01443537")),
        (i2webv, "ILSVRC_CLASSES", 2),
        (i2webv, "PUBLISHED_SOURCE", 4),
    ):
        monkeypatch.setattr(module, name, value)
    return tmp_path


def test_i2webv(webv: Path, tmp_path: Path, without_ray: None) -> None:
    cache = prepare(
        FeatureOptions(benchmark="i2webv", clip=str(ASSETS / "clip"), data_root=webv, cache_dir=tmp_path / "cache")
    )
    features = load(cache)
    assert features.source_labels_I.tolist() == [0, 0, 1, 1]
    assert load_target_labels(cache).tolist() == [3, 1, 2, 0]
    assert features.classes.unseen_RC.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("val_filelist.txt", "jpg 3", "jpg 4", "line 4: labels must be 0 to 3, by .*synsets.txt; got 4"),
        (
            "val_filelist.txt",
            "val000003.jpg 3",
            "../../val000003.jpg 3",
            "image paths must stay inside .*_256",
        ),
        ("val_filelist.txt", "val000003.jpg 3", "/val000003.jpg 3", "image paths must stay inside"),
        ("val_filelist.txt", "val000003.jpg 3", "val000003.jpg 2", "has 3 target classes; published are 4"),
        ("val_filelist.txt", "val000003", "val000009", "1 of the 4 target test images .* such as val000009.jpg"),
        ("synsets.txt", "n02331046", "n02331047", "line 1: n02331047 is no class of WebVision 2.0"),
    ],
)
def test_mistakes_in_webvisions_lists(webv: Path, file: str, old: str, new: str, message: str) -> None:
    edit(webv / "webvision" / "info" / file, old, new)
    with pytest.raises(UserError, match=message):
        get_benchmark("i2webv", webv)


def test_names_of_5000_classes_differ() -> None:
    names = [entry.name for entry in webvision_classes()]
    assert len({name.lower() for name in names}) == 5000
    net = wordnet()
    assert all(name.split(" (")[0] == net.synsets[wnid].lemmas[0] for name, wnid in webvision_classes())
    assert names[134] == "crane (wading bird)" and names[517] == "crane (lifting device)"


def test_graph_of_5000_classes() -> None:
    """Built in some 3 s. What two classes alone have in common does not change among 5,000."""
    names, wnids = zip(*webvision_classes(), strict=True)
    graph = build_graph(wordnet(), names, wnids)
    assert (len(graph.wnids), len(graph.edges_E2)) == (7460, 7693)
    assert graph.path_similarity_CC.shape == graph.wup_similarity_CC.shape == (5000, 5000)
    for a, b in ((0, 1), (0, 999), (134, 517), (2500, 4999)):
        small = build_graph(wordnet(), names[a : a + 1] + names[b : b + 1], wnids[a : a + 1] + wnids[b : b + 1])
        assert graph.path_similarity_CC[a, b] == small.path_similarity_CC[0, 1]
        assert graph.wup_similarity_CC[b, a] == small.wup_similarity_CC[1, 0]
