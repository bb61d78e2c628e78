"""The xlsa17 benchmarks from miniatures with MATLAB's shapes: columns of doubles from 1, cells in cells."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from data_prep import FeatureOptions, UserError, prepare
from data_prep.benchmarks import get_benchmark, xlsa17
from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.feature_store import load, load_target_labels

CLASSES = ("antelope", "grizzly+bear", "killer+whale", "beaver")  # AwA2's own order, which is not I2AwA's
PLACES = {
    "awa2": ("AWA2", "Animals_with_Attributes2/JPEGImages", "{c}/{c}_{k}.jpg"),
    "cub": ("CUB", "CUB_200_2011/images", "{n:03d}.{c}/{c}_{k}.jpg"),
    "sun": ("SUN", "SUN/images", "a/{c}/sun_{c}{k}.jpg"),
    "flo": ("FLO", "Flowers/jpg", "image_{n}{k}.jpg"),
}
LABELS = (1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4)
SPLITS = {"trainval_loc": (1, 2, 4, 5, 9, 10), "test_seen_loc": (3, 6, 11), "test_unseen_loc": (7, 8)}


def cells(texts: list[str]) -> np.ndarray:
    """A MATLAB column cell array of strings."""
    column = np.empty((len(texts), 1), dtype=object)
    for i, text in enumerate(texts):
        column[i, 0] = text
    return column


def write(root: Path, name: str) -> Path:
    """Files of one benchmark with 11 images of 4 classes, the third unseen; the images themselves are empty."""
    folder, images, pattern = PLACES[name]
    files = [pattern.format(c=CLASSES[c - 1], n=c, k=k) for k, c in enumerate(LABELS)]
    for file in files:
        (root / images / file).parent.mkdir(parents=True, exist_ok=True)
        (root / images / file).touch()
    tables = root / "xlsa17" / "data" / folder
    tables.mkdir(parents=True)
    foreign = [f"/BS/someone/work/images/of/{images.replace('/', '//')}/{file}" for file in files]
    labels = np.array(LABELS, dtype=np.float64)[:, None]
    res101 = {"features": np.zeros((8, len(files))), "labels": labels, "image_files": cells(foreign)}
    savemat(tables / "res101.mat", res101)
    splits: dict[str, Any] = {key: np.array(value, np.uint16)[:, None] for key, value in SPLITS.items()}
    if name == "flo":
        names = ", ".join(f'"{c + 1}": "{CLASSES[c]}"' for c in (3, 2, 1, 0))
        (root / "Flowers" / "cat_to_name.json").write_text(f"{{{names}}}")
        # Published for FLO as class-disjoint folds that cover test images: whoever reads them trains on the test set.
        splits |= {"train_loc": np.array([[1], [2], [3]]), "val_loc": np.array([[4], [5], [6]])}
    else:
        numbered = [f"{n:03d}.{c}" if name == "cub" else c for n, c in enumerate(CLASSES, start=1)]
        splits["allclasses_names"] = cells(numbered)
    savemat(tables / "att_splits.mat", splits)
    return root


@pytest.fixture(params=list(PLACES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {key: entry._replace(seen=3, unseen=1, counts=(6, 3, 2)) for key, entry in xlsa17.SETS.items()}
    monkeypatch.setattr(xlsa17, "PUBLISHED", dict(xlsa17.SETS), raising=False)
    monkeypatch.setattr(xlsa17, "SETS", small)


def test_published_counts() -> None:
    counts = {key: (entry.seen, entry.unseen, *entry.counts) for key, entry in xlsa17.PUBLISHED.items()}  # type: ignore[attr-defined]
    assert counts == {
        "awa2": (40, 10, 23_527, 5_882, 7_913),
        "cub": (150, 50, 7_057, 1_764, 2_967),
        "sun": (645, 72, 10_320, 2_580, 1_440),
        "flo": (82, 20, 5_631, 1_403, 1_155),
    }


def test_images_labels_and_splits(tmp_path: Path, name: str) -> None:
    bench = get_benchmark(name, write(tmp_path, name))
    spoken = ("antelope", "grizzly bear", "killer whale", "beaver")
    assert bench.classes.names == (CLASSES if name == "flo" else spoken)
    assert bench.classes.unseen_RC.tolist() == [[False, False, True, False]]
    source, target = bench.domain("source"), bench.domain("target")
    assert source["label"].to_pylist() == [0, 0, 1, 1, 3, 3]
    assert target["label"].to_pylist() == [0, 1, 3, 2, 2]
    assert (set(source["split"].to_pylist()), set(target["split"].to_pylist())) == ({0}, {2})
    assert all(Path(path).is_file() for path in bench.images["path"].to_pylist())
    first = {"awa2": "antelope/antelope_0.jpg", "cub": "001.antelope/antelope_0.jpg"}
    first |= {"sun": "a/antelope/sun_antelope0.jpg", "flo": "image_10.jpg"}
    assert source["key"][0].as_py() == first[name]
    wnids = ("n02419796", "n02132580", "n02071294", "n02363005")
    assert bench.classes.wnids == (wnids if name == "awa2" else (None,) * 4)
    assert bench.templates == (("a photo of a {}, a type of flower.",) if name == "flo" else ("a photo of a {}.",))


def test_features(tmp_path: Path, write_image: Callable[..., None], without_ray: None) -> None:
    for path in (write(tmp_path, "flo") / "Flowers" / "jpg").iterdir():
        write_image(path)
    cache = prepare(
        FeatureOptions(benchmark="flo", clip=str(ASSETS / "clip"), data_root=tmp_path, cache_dir=tmp_path / "cache")
    )
    features = load(cache)
    assert features.source_labels_I.tolist() == [0, 0, 1, 1, 3, 3]
    assert load_target_labels(cache).tolist() == [0, 1, 3, 2, 2]
    assert features.graph.edges_E2.shape == (0, 2)


def change(file: str, **variables: Any) -> Callable[[Path], None]:
    """Replace variables of a .mat file of awa2; None removes one."""

    def apply(tables: Path) -> None:
        content = {k: v for k, v in loadmat(tables / file).items() if not k.startswith("_")} | variables
        savemat(tables / file, {k: v for k, v in content.items() if v is not None})

    return apply


def hdf5(tables: Path) -> None:
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    (tables / "res101.mat").write_bytes(header.ljust(512, b"\0"))


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda t: (t / "res101.mat").unlink(), "awa2's table is missing; looked for .*AWA2/res101.mat"),
        (hdf5, r"res101.mat is a MATLAB 7.3 \(HDF5\) file; save it with -v7"),
        (lambda t: (t / "res101.mat").write_bytes(b"\x01" * 300), "res101.mat must be a MATLAB file of version 5 to 7"),
        (lambda t: (t / "res101.mat").write_bytes(b""), "res101.mat must be a MATLAB file of version 5 to 7"),
        (lambda t: (t / "res101.mat").write_bytes((t / "res101.mat").read_bytes()[:-50]), "must be a MATLAB file of"),
        (change("res101.mat", labels=None), "res101.mat must hold labels, image_files; labels missing"),
        (change("res101.mat", labels=column(*LABELS[:-1])), "must have a label per image; it has 10 and 11"),
        (change("res101.mat", labels=column(*LABELS[:-1], 5)), "labels must be 1 to 4, the number of classes; got 5"),
        (change("res101.mat", labels=column(0, *LABELS[1:])), "labels must be 1 to 4"),
        (change("res101.mat", labels=column(1.5, *LABELS[1:])), "labels must hold whole numbers"),
        (
            change("res101.mat", image_files=cells(["/x/a.jpg"] * 11)),
            "image_files must lead through a folder JPEGI",
        ),
        (change("res101.mat", image_files=cells(["/JPEGImages/../a.jpg"] * 11)), "image paths must stay inside"),
        (change("att_splits.mat", allclasses_names=None), "allclasses_names missing"),
        (change("att_splits.mat", allclasses_names=cells(["cat"] * 4)), "must be the classes of AwA2; 'cat' is none"),
        (change("att_splits.mat", allclasses_names=cells(["ox", "rat", "ox", "bat"])), "differ; 2 of them are 'ox'"),
        (change("att_splits.mat", test_unseen_loc=None), "test_unseen_loc missing"),
        (change("att_splits.mat", test_unseen_loc=np.zeros((0, 1))), "test_unseen_loc must hold indices; it is empty"),
        (change("att_splits.mat", trainval_loc=column(0, 1)), "trainval_loc must hold indices 1 to 11; it has 0 to 1"),
        (change("att_splits.mat", trainval_loc=column(12, 1)), "must hold indices 1 to 11; it has 1 to 12"),
        (change("att_splits.mat", test_seen_loc=column(3, 6, 10)), "listed once; beaver/beaver_9.jpg is there twice"),
        (change("att_splits.mat", test_seen_loc=column(3, 6)), "has 2 images in test_seen_loc; published are 3"),
        (change("att_splits.mat", test_unseen_loc=column(7, 8, 3)), "has images of class 1 in seen and unseen parts"),
        (change("att_splits.mat", test_unseen_loc=column(7, 7)), "listed once; killer.whale/killer.whale_6.jpg is th"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, mistake: Callable[[Path], object], message: str) -> None:
    mistake(write(tmp_path, "awa2") / "xlsa17" / "data" / "AWA2")
    with pytest.raises(UserError, match=message) as error:
        get_benchmark("awa2", tmp_path)
    assert "\n" not in str(error.value)


def test_a_subset_is_taken_when_allowed(tmp_path: Path) -> None:
    (write(tmp_path, "sun") / "SUN" / "images" / "a" / "beaver" / "sun_beaver8.jpg").unlink()
    with pytest.raises(UserError, match="1 of the 6 source train images listed in .*splits.mat are missing, such as"):
        get_benchmark("sun", tmp_path)
    bench = get_benchmark("sun", tmp_path, allow_partial=True)
    assert bench.domain("source")["label"].to_pylist() == [0, 0, 1, 1, 3]
    assert bench.partial == "1 of 6 source train images not on disk"


def test_flower_names_are_needed(tmp_path: Path) -> None:
    names = write(tmp_path, "flo") / "Flowers" / "cat_to_name.json"
    names.write_text('{"0": "rose"}')
    with pytest.raises(UserError, match='cat_to_name.json must map "1", "2", ... to names'):
        get_benchmark("flo", tmp_path)
    names.unlink()
    with pytest.raises(UserError, match="flo's class names is missing; looked for .*oxford_flowers/cat_to_name.json"):
        get_benchmark("flo", tmp_path)


@pytest.mark.parametrize("file", ["AWA2/res101.mat", "AWA2/att_splits.mat"])
def test_damaged_tables_never_end_in_a_traceback(tmp_path: Path, file: str) -> None:
    path = write(tmp_path, "awa2") / "xlsa17" / "data" / file
    content, generator = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(40):
        start = generator.randrange(len(content))
        noise = generator.randbytes(generator.randrange(1, 40))
        path.write_bytes(content[:start] + generator.choice([b"", noise, noise + content[start + len(noise) :]]))
        try:
            get_benchmark("awa2", tmp_path)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 30
