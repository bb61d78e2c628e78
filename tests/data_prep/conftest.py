"""A small folder benchmark cut from the embedded images, and its cache.

Also lets the tests of this folder import `miniatures`, whichever way pytest was started.
"""

import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_prep import FeatureOptions, cache_build, clip_features, prepare
from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.checkpoint import Checkpoint
from data_prep.clip_features import PreprocessAndEncode, Progress

sys.path.insert(0, str(Path(__file__).parent))

CLIP = str(ASSETS / "clip")
CLASSES = {"anchor": "n02709367", "banana": "n07753592", "bear": "n02131653", "bed": "n02818832"}
UNSEEN = ("bear", "bed")


def write_folder(root: Path, images_per_class: int = 4) -> Path:
    """`<root>/{source,target}/<class>/<k>.png` and classes.csv, of real icons and emoji."""
    table = pq.read_table(ASSETS / "images.parquet", columns=["image", "class_id", "domain"])
    names = pq.read_table(ASSETS / "classes.parquet")["name"].to_pylist()
    for domain, folder in (("icon", "source"), ("emoji", "target")):
        for name in CLASSES:
            mine = [
                row["image"] for row in table.to_pylist() if row["domain"] == domain and names[row["class_id"]] == name
            ]
            (root / folder / name).mkdir(parents=True)
            for k, image in enumerate(mine[:images_per_class]):
                (root / folder / name / f"{k}.png").write_bytes(image)
    rows = [f"{name},{wnid},{int(name not in UNSEEN)}" for name, wnid in CLASSES.items()]
    (root / "classes.csv").write_text("\n".join(["name,wnid,seen", *rows]) + "\n")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pets")


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images") / "pets")


actors: dict[str, PreprocessAndEncode] = {}
"""By the checkpoint's content: loading a model takes longer than a test's images."""


def run_here(
    units: list[dict[str, Any]], checkpoint: Checkpoint, batch: int, tokens: bool, gpu: bool
) -> Iterator[dict[str, Any]]:
    """What Ray Data runs, without Ray: starting its actors takes longer than all the work of these tests."""
    content = json.dumps([checkpoint.identity, batch, tokens])
    if content not in actors:
        actors[content] = PreprocessAndEncode(checkpoint, 1, batch, tokens, gpu)
    yield from map(actors[content], units)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    _leave_ray_out(monkeypatch)


@pytest.fixture(scope="module")
def module_without_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        _leave_ray_out(patch)
        yield


def _leave_ray_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(clip_features, "_run", run_here)
    patch.setattr(cache_build, "ray_session", nullcontext)


@pytest.fixture(scope="session")
def prepare_small(small_folder: Path) -> Callable[..., Path]:
    """`prepare` of the small folder with the embedded checkpoint, and other options by name."""

    def call(cache_dir: Path | str, progress: Progress | None = None, **options: Any) -> Any:
        small = FeatureOptions(benchmark=f"folder:{small_folder}", clip=CLIP, cache_dir=cache_dir)
        return prepare(replace(small, **options), progress)

    return call


@pytest.fixture(scope="session")
def small_cache(prepare_small: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the small folder, without Ray: the real Ray Data job builds that of the embedded benchmark."""
    with pytest.MonkeyPatch.context() as patch:
        _leave_ray_out(patch)
        return prepare_small(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def write_image() -> Callable[..., None]:
    """write_image(path): a small image in the format its suffix says; `mode="CMYK"` for the JPEGs of old scanners."""
    from PIL import Image

    def write(path: Path, mode: str = "RGB") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = zlib.crc32(path.name.encode())
        image = Image.new("RGB", (40, 30), (colour & 255, colour >> 8 & 255, colour >> 16 & 255))
        image.convert("P" if path.suffix == ".gif" else mode).save(path)

    return write


@pytest.fixture(scope="session")
def interrupted_build(prepare_small: Callable[..., Path]) -> Callable[[Path | str], None]:
    """Begins to prepare the small folder and stops after the first shard."""

    class Stop(Exception):
        pass

    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise Stop

    def call(cache_dir: Path | str) -> None:
        with pytest.raises(Stop):
            prepare_small(cache_dir, progress=interrupt)

    return call
