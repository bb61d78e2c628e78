"""A small folder benchmark cut from the embedded images, and its cache."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep import prepare
from data_prep.benchmarks.icons2emoji import ASSETS

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


@pytest.fixture(scope="session")
def prepare_small(small_folder: Path, ray_cluster: None) -> Callable[..., Path]:
    """`prepare` of the small folder with the embedded checkpoint."""

    def call(cache_dir: Path, **options: object) -> Path:
        return prepare(
            **{
                "benchmark": f"folder:{small_folder}",
                "clip": CLIP,
                "data_root": None,
                "cache_dir": cache_dir,
                **options,
            }
        )

    return call


@pytest.fixture(scope="session")
def small_cache(prepare_small: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("cache"))
