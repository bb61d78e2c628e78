"""Malformed inputs: each ends in one clear line or in a row of rejected.parquet, never in a traceback or in silence."""

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from data_prep import FeatureOptions, UserError, prepare
from data_prep.benchmarks import get_benchmark
from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.feature_store import load, load_target_labels, verify
from data_prep.manifest import read_manifest
from data_prep.templates import find_templates

CLIP = str(ASSETS / "clip")


def encoded(format: str, mode: str = "RGB", size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, format, **options)
    return out.getvalue()


def with_noise(content: bytes, seed: int) -> bytes:
    """Thirty bytes somewhere replaced."""
    generator = random.Random(seed)
    start = generator.randrange(len(content) - 30)
    return content[:start] + generator.randbytes(30) + content[start + 30 :]


def images() -> dict[str, tuple[bytes, bool | None]]:
    """File name -> content, and whether it can be read; None: either way, but not silently."""
    jpeg, png = encoded("JPEG"), encoded("PNG")
    found: dict[str, tuple[bytes, bool | None]] = {
        "empty.jpg": (b"", False),
        "one-byte.jpg": (b"\xff", False),
        "text.jpg": (b"not an image\n", False),
        "page.jpg": (b"<!DOCTYPE html><html>404</html>", False),
        "document.jpg": (b"%PDF-1.4\n%%EOF", False),
        "zipped.jpg": (gzip.compress(jpeg), False),
        "header-only.png": (png[:16], False),
        "strip.png": (encoded("PNG", size=(4000, 2)), False),
        "zeros.jpg": (bytes(5000), False),
        "png-in-fact.jpg": (png, True),
        "jpeg-in-fact.gif": (jpeg, True),
        "no-suffix": (jpeg, True),
        "cmyk.jpg": (encoded("JPEG", "CMYK"), True),
        "grey.jpg": (encoded("JPEG", "L"), True),
        "grey-alpha.png": (encoded("PNG", "LA"), True),
        "alpha.png": (encoded("PNG", "RGBA"), True),
        "bits.png": (encoded("PNG", "1"), True),
        "palette.png": (encoded("PNG", "P"), True),
        "sixteen-bits.png": (encoded("PNG", "I;16"), True),
        "floats.tiff": (encoded("TIFF", "F"), True),
        "animation.gif": (encoded("GIF", "P", save_all=True), True),
        "pixel.png": (encoded("PNG", size=(1, 1)), True),
        "progressive.jpg": (encoded("JPEG", progressive=True), True),
    }
    for format in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"):
        content = encoded(format)
        for share in (0.1, 0.6):
            found[f"cut-at-{share}.{format}"] = content[: int(share * len(content))], None if format == "GIF" else False
    found |= {f"noise-{k}.jpg": (with_noise(jpeg, k), None) for k in range(8)}
    found |= {f"noise-{k}.png": (with_noise(png, k), None) for k in range(4)}
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, module_without_ray: None) -> tuple[set[str], dict[str, str]]:
    """Keys that were encoded, and keys that were rejected with their reasons, from one folder with all images."""
    root = tmp_path_factory.mktemp("malformed") / "images"
    miniatures.write_folder(root)
    for name, (content, _) in images().items():
        (root / "target" / "anchor" / name).write_bytes(content)
    (root / "target" / "anchor" / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "target" / "anchor" / "loop.jpg").symlink_to("loop.jpg")
    (root / "target" / "anchor" / "folder.jpg").mkdir()
    cache = prepare(
        FeatureOptions(benchmark=f"folder:{root}", clip=CLIP, cache_dir=root.parent / "cache", max_rejected=1)
    )
    features, rejected = load(cache), pq.read_table(cache / "rejected.parquet").to_pylist()
    keys = {*features.source.keys.to_pylist(), *features.target.keys.to_pylist()}
    assert len(keys) + len(rejected) == 8 * 8 + len(images()) + 3
    return keys, {row["key"]: row["reason"] for row in rejected}


@pytest.mark.parametrize("name", [*images(), "dangling.jpg", "loop.jpg", "folder.jpg"])
def test_an_image_is_encoded_or_rejected_with_a_reason(name: str, built: tuple[set[str], dict[str, str]]) -> None:
    (keys, reasons), key = built, f"target/anchor/{name}"
    assert (key in keys) != (key in reasons)
    readable = images()[name][1] if name in images() else False
    assert readable is None or (key in keys) == readable
    if key in reasons:
        assert reasons[key] and "\n" not in reasons[key] and "/" not in reasons[key]


def lines(file: str, change: Callable[[list[str]], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        content = (root / file).read_text().splitlines()
        (root / file).write_text("\n".join(change(content) or content) + "\n")

    return apply


def parsed(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        content = json.loads((root / file).read_text())
        (root / file).write_text(json.dumps(change(content)))

    return apply


def variables(file: str, **changes: Any) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / "xlsa17" / "data" / "AWA2" / file
        content = {k: v for k, v in loadmat(path).items() if not k.startswith("_")} | changes
        savemat(path, {k: v for k, v in content.items() if v is not None})

    return apply


def raw(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda root: (root / file).write_bytes(content) and None


MAT, AWA2 = "xlsa17/data/AWA2/res101.mat", "new_AwA2.txt"
SPLIT = "eurosat/split_zhou_EuroSAT.json"
V73 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM".ljust(400, b"\0")
LISTS: list[tuple[str, str, Callable[[Path], None]]] = [
    ("i2awa", "label out of range", lines(AWA2, lambda x: [f"{x[0].rpartition(' ')[0]} 50", *x[1:]])),
    ("i2awa", "negative label", lines(AWA2, lambda x: [f"{x[0].rpartition(' ')[0]} -1", *x[1:]])),
    ("i2awa", "no label", lines(AWA2, lambda x: [x[0].rpartition(" ")[0], *x[1:]])),
    ("i2awa", "label of another class", lines(AWA2, lambda x: [f"{x[0].rpartition(' ')[0]} 7", *x[1:]])),
    ("i2awa", "duplicate path", lines(AWA2, lambda x: [*x[:-1], x[0]])),
    ("i2awa", "path escaping the root", lines(AWA2, lambda x: ["../../etc/passwd 0", *x[1:]])),
    ("i2awa", "unknown class folder", lines(AWA2, lambda x: ["/a/okapi/okapi_1.jpg 0", *x[1:]])),
    ("i2awa", "binary list", raw(AWA2, b"\xff\xfe\0\1")),
    ("i2webv", "label out of range", lines("webvision/info/val_filelist.txt", lambda x: ["val000000.jpg 10", *x[1:]])),
    ("i2webv", "duplicate path", lines("webvision/info/val_filelist.txt", lambda x: [*x[:-1], x[0]])),
    ("i2webv", "path escaping", lines("webvision/info/val_filelist.txt", lambda x: ["../val000000.jpg 0", *x[1:]])),
    ("i2webv", "absolute path", lines("webvision/info/val_filelist.txt", lambda x: ["/etc/passwd 0", *x[1:]])),
    ("i2webv", "unknown wnid", lines("webvision/info/synsets.txt", lambda x: ["n00000000 thing", *x[1:]])),
    ("i2webv", "null byte", raw("webvision/info/val_filelist.txt", b"val\0.jpg 1\n" * 2)),
    ("awa2", "MATLAB 7.3", raw(MAT, V73)),
    ("awa2", "MATLAB 4", lambda root: savemat(root / MAT, {"labels": np.ones((3, 1))}, format="4")),
    ("awa2", "no MATLAB", raw(MAT, b"PK\3\4 a zip file")),
    ("awa2", "empty", raw(MAT, b"")),
    ("awa2", "label 0", variables("res101.mat", labels=np.zeros((36, 1)))),
    ("awa2", "label out of range", variables("res101.mat", labels=np.full((36, 1), 7))),
    ("awa2", "labels of text", variables("res101.mat", labels=np.array(["a", "b"]))),
    ("awa2", "NaN labels", variables("res101.mat", labels=np.full((36, 1), np.nan))),
    ("awa2", "paths escaping", variables("res101.mat", image_files=np.array([["/JPEGImages/../x"]] * 36, object))),
    ("awa2", "paths of nothing", variables("res101.mat", image_files=np.array([[""]] * 36, object))),
    ("awa2", "fewer paths", variables("res101.mat", image_files=np.array([["/JPEGImages/x"]] * 3, object))),
    ("awa2", "missing variable", variables("att_splits.mat", test_seen_loc=None)),
    ("awa2", "index 0", variables("att_splits.mat", test_seen_loc=np.array([[0]]))),
    ("awa2", "index out of range", variables("att_splits.mat", test_seen_loc=np.array([[37]]))),
    ("awa2", "fractional index", variables("att_splits.mat", test_seen_loc=np.array([[1.5]]))),
    ("awa2", "trained and tested", variables("att_splits.mat", test_seen_loc=np.array([[1]]))),
    ("awa2", "unknown class", variables("att_splits.mat", allclasses_names=np.array([["cat"]] * 6, object))),
    ("eurosat", "no JSON", raw(SPLIT, b"{'train': []}")),
    ("eurosat", "binary JSON", raw(SPLIT, b"\xff\xfe")),
    ("eurosat", "JSON of a list", parsed(SPLIT, lambda x: [x])),
    ("eurosat", "JSON of null", parsed(SPLIT, lambda x: None)),
    ("eurosat", "missing key", parsed(SPLIT, lambda x: {"train": x["train"]})),
    ("eurosat", "part of text", parsed(SPLIT, lambda x: x | {"val": "none"})),
    ("eurosat", "short entry", parsed(SPLIT, lambda x: x | {"val": [["a.jpg", 0]]})),
    ("eurosat", "label of text", parsed(SPLIT, lambda x: x | {"val": [["a.jpg", "0", "anchor"]]})),
    ("eurosat", "label out of range", parsed(SPLIT, lambda x: x | {"val": [["a.jpg", 99, "ox"]]})),
    ("eurosat", "negative label", parsed(SPLIT, lambda x: x | {"val": [["a.jpg", -1, "ox"]]})),
    ("eurosat", "two names", parsed(SPLIT, lambda x: x | {"val": [["a.jpg", 0, "ox"]]})),
    ("eurosat", "duplicate path", parsed(SPLIT, lambda x: x | {"test": [x["test"][0]] * 2})),
    ("eurosat", "path escaping", parsed(SPLIT, lambda x: x | {"test": [["../../x.jpg", 0, "anchor"]]})),
    ("fgvc_aircraft", "unknown variant", lines("fgvc_aircraft/images_variant_val.txt", lambda x: ["1 Concorde"])),
    ("fgvc_aircraft", "no variants", raw("fgvc_aircraft/variants.txt", b"\n")),
    ("imagenet", "missing wnids", lines("imagenet/classnames.txt", lambda x: x[1:])),
    ("flo", "names of no flowers", parsed("Flowers/cat_to_name.json", lambda x: {"a": "rose"})),
    ("folder:mine", "no columns", raw("mine/classes.csv", b"anchor\nbanana\n")),
    ("folder:mine", "empty table", raw("mine/classes.csv", b"")),
    ("folder:mine", "binary table", raw("mine/classes.csv", b"\xff\xfe\0")),
    ("folder:mine", "unknown wnid", lines("mine/classes.csv", lambda x: [x[0], "anchor,n99999999,1", *x[2:]])),
    ("folder:mine", "class twice", lines("mine/classes.csv", lambda x: [*x, x[1]])),
    ("folder:mine", "seen of maybe", lines("mine/classes.csv", lambda x: [x[0], "anchor,-,maybe", *x[2:]])),
    ("folder:mine", "missing value", lines("mine/classes.csv", lambda x: [x[0], "anchor", *x[2:]])),
    ("folder:mine", "stray file", raw("mine/source/readme", b"hello")),
    ("folder:mine", "stray class", lambda root: (root / "mine" / "source" / "okapi").mkdir()),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    miniatures.write_all(root)
    return root


@pytest.mark.parametrize(("benchmark", "what", "change"), LISTS, ids=[f"{name}: {what}" for name, what, _ in LISTS])
def test_a_list_is_refused_in_one_line(
    benchmark: str,
    what: str,
    change: Callable[[Path], None],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    miniatures.shorten_class_lists(monkeypatch)
    for path in whole.rglob("*"):  # links to the images, copies of the lists
        copy = tmp_path / path.relative_to(whole)
        if path.is_dir():
            copy.mkdir()
        elif path.suffix in (".txt", ".json", ".csv", ".mat"):
            copy.write_bytes(path.read_bytes())
        elif path.relative_to(whole).parts[0] in ("mine", "3D2", "Animals_with_Attributes2", "eurosat", "webvision"):
            copy.symlink_to(path)
    change(tmp_path)
    with pytest.raises(UserError) as error:
        get_benchmark(benchmark, tmp_path, allow_partial=True)
    assert str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("source.parquet", b""),
        ("source.parquet", b"PAR1 and nothing else"),
        ("source.parquet", pa.table({"other": [1, 2]})),
        ("names.parquet", pa.table({"feature": [1.0]})),
        ("target_labels.parquet", pa.table({"key": ["a"]})),
        ("edges.parquet", pa.table({"child": ["x"], "parent": [None]})),
        ("manifest.json", b"{}"),
        ("manifest.json", b"[]"),
        ("manifest.json", b"\xff\xfe"),
        ("manifest.json", b'{"fingerprint": "x", "inputs": {}, "files": {}}'),
    ],
)
def test_a_cache_is_refused_in_one_line(
    file: str, content: bytes | pa.Table, small_cache: Path, tmp_path: Path
) -> None:
    import shutil

    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    if isinstance(content, bytes):
        (cache / file).write_bytes(content)
    else:
        pq.write_table(content, cache / file)
    for read in (verify, load_target_labels if file == "target_labels.parquet" else load):
        with pytest.raises(UserError) as error:
            read(cache)
        assert file in str(error.value) and "\n" not in str(error.value)
    if file == "manifest.json":
        with pytest.raises(UserError):
            read_manifest(cache)


@pytest.mark.parametrize("template", ["a photo", "a {} and a {}", "a {name}", "imagenet8", "{", ""])
def test_a_template_is_refused_in_one_line(template: str) -> None:
    with pytest.raises(UserError, match="^templates must be one of .*got") as error:
        find_templates(template)
    assert "\n" not in str(error.value)
