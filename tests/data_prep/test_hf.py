"""Data sets in Hugging Face's layouts are read as the folder is from which they were made; offline."""

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets.table import embed_table_storage
from PIL import Image

from data_prep.__main__ import main
from data_prep.benchmarks import get_benchmark
from data_prep.errors import UserError
from data_prep.image_hashes import image_contents

Layout = Callable[[Path, Path], None]
NAMES = ["anchor", "banana", "bear", "bed"]


def image_folder(images: Path, root: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(images / {"train": "source", "test": "target"}[split], root / split)


def write_parquet(part: datasets.Dataset, file: Path) -> None:
    """With the images in the file, as on the hub."""
    whole = part.with_format("arrow").map(embed_table_storage, batched=True, load_from_cache_file=False)
    whole.with_format(None).to_parquet(file)


def parquet(images: Path, root: Path) -> None:
    image_folder(images, root / "images")
    (root / "data").mkdir()
    for split, part in datasets.load_dataset(str(root / "images")).items():
        write_parquet(part, root / "data" / f"{split}-00000-of-00001.parquet")
    shutil.rmtree(root / "images")


def strings(images: Path, root: Path) -> None:
    """Labels as names, without class labels."""
    parquet(images, root)
    for file in (root / "data").iterdir():
        part = datasets.Dataset.from_parquet(str(file))
        part.cast_column("label", datasets.Value("string")).map(
            lambda row: {"label": NAMES[int(row["label"])]}
        ).to_parquet(file)


def web_dataset(images: Path, root: Path) -> None:
    """Tar files of images and rows of the class table."""
    root.mkdir()
    for split, domain in (("train", "source"), ("test", "target")):
        with tarfile.open(root / f"{split}-000.tar", "w") as tar:
            for path in sorted((images / domain).rglob("*.png")):
                for suffix, content in (
                    ("png", path.read_bytes()),
                    ("cls", str(NAMES.index(path.parent.name)).encode()),
                ):
                    info = tarfile.TarInfo(f"{path.parent.name}{path.stem}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("layout", [image_folder, parquet, strings, web_dataset])
def test_every_layout_is_the_folder(layout: Layout, small_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "pets"
    layout(small_folder, root)
    shutil.copy(small_folder / "classes.csv", root)
    bench = get_benchmark(f"hf:{root}")
    folder = tmp_path / "folder"
    image_folder(small_folder, folder)
    shutil.copy(small_folder / "classes.csv", folder)
    expected = get_benchmark(f"folder:{folder}")
    assert bench.classes.names == expected.classes.names and bench.slug == "hf-pets"
    for column in ("label", "domain", "split"):
        assert bench.images[column] == expected.images[column]
    assert image_contents(bench.images)["sha256"] == image_contents(expected.images)["sha256"]


def test_roles_are_said_or_the_one_split_is_dealt(small_folder: Path, tmp_path: Path) -> None:
    for domain, split in (("source", "photos"), ("target", "sketches"), ("target", "more")):
        shutil.copytree(small_folder / domain, tmp_path / "pets" / split)
    name = f"hf:{tmp_path / 'pets'}"
    shutil.copy(small_folder / "classes.csv", tmp_path / "pets")
    rows = {s: tmp_path / "pets" / s for s in ("photos", "sketches", "more")}
    named = {split: [str(path)] for split, path in rows.items()}
    parts = {s: datasets.load_dataset("imagefolder", data_dir=d[0], split="train") for s, d in named.items()}
    for split, part in parts.items():
        write_parquet(part, tmp_path / "pets" / f"{split}.parquet")
        shutil.rmtree(rows[split])
    text = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    text += "".join(f"  - split: {split}\n    path: {split}.parquet\n" for split in parts)
    (tmp_path / "pets" / "README.md").write_text(text + "---\n")
    with pytest.raises(UserError, match="must have splits source and target, or train and test; found photos, "):
        get_benchmark(name)
    with pytest.raises(UserError, match=r"source must be a split of .*; got 'fotos' \(nearest: photos\)"):
        get_benchmark(f"{name}::fotos::sketches")
    with pytest.raises(UserError, match="two different ones; got PATH::photos::photos"):
        get_benchmark(f"{name}::photos::photos")
    bench = get_benchmark(f"{name}::photos::sketches")
    assert bench.domain("source")["key"][0] == pa.scalar("photos/00000000") and len(bench.images) == 32
    assert bench.notes[-1] == "left out: split more"
    for split in ("sketches", "more"):
        (tmp_path / "pets" / f"{split}.parquet").unlink()
    (tmp_path / "pets" / "README.md").unlink()
    dealt = get_benchmark(name)
    assert set(dealt.domain("source")["label"].to_pylist()) == {0, 1} and len(dealt.images) == 16


@pytest.mark.parametrize("unknown", [-1, None])
def test_labels_of_a_test_split_may_be_hidden(unknown: int | None, small_folder: Path, tmp_path: Path) -> None:
    """As the hub's data sets of competitions have them."""
    root = tmp_path / "pets"
    parquet(small_folder, root)
    shutil.copy(small_folder / "classes.csv", root)
    file = next(root.rglob("*test*.parquet"))
    part = datasets.Dataset.from_parquet(str(file))
    write_parquet(part.map(lambda _: {"label": unknown}, features=part.features), file)
    bench = get_benchmark(f"hf:{root}")
    assert set(bench.domain("target")["label"].to_pylist()) == {-1}
    assert set(bench.domain("source")["label"].to_pylist()) == {0, 1, 2, 3}


def test_mistakes_are_one_line(small_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hf:/no/where cannot be loaded: "):
        get_benchmark("hf:/no/where")
    root = tmp_path / "pets"
    image_folder(small_folder, root)
    with pytest.raises(UserError, match="pets/classes.csv must be a CSV file"):
        get_benchmark(f"hf:{root}")
    (root / "classes.csv").write_text("name,wnid,seen\nanchor,,1\nbanana,,1\nbear,n02131653,0\nbeds,-,0\n")
    with pytest.raises(UserError, match="label must be a name of classes.csv; got bed .nearest: beds"):
        get_benchmark(f"hf:{root}")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "plain").mkdir()
    datasets.Dataset.from_dict({"text": ["a"], "label": ["b"]}).to_parquet(tmp_path / "plain" / "train.parquet")
    shutil.copy(small_folder / "classes.csv", tmp_path / "plain")
    with pytest.raises(UserError, match="one column of images and one of class labels, or label; found text: Value"):
        get_benchmark(f"hf:{tmp_path / 'plain'}")


def test_the_class_table_is_written_from_its_labels(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet(small_folder, tmp_path / "pets")
    monkeypatch.setattr("sys.argv", ["data_prep", "classes", f"hf:{tmp_path / 'pets'}", "--unseen", "bear", "bed"])
    assert main() == 0
    assert "anchor: n02709367" in capsys.readouterr().out
    assert get_benchmark(f"hf:{tmp_path / 'pets'}").classes.unseen_RC.tolist() == [[False, False, True, True]]
