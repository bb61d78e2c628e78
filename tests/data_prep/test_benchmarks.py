"""Benchmarks, checkpoints, and what users get wrong about them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep import FeatureOptions, UserError, prepare
from data_prep.benchmarks import get_benchmark
from data_prep.benchmarks.folder import _splits
from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.cache_build import inputs_of
from data_prep.checkpoint import find_checkpoint
from data_prep.image_hashes import image_contents
from data_prep.manifest import fingerprint


def test_icons2emoji_is_the_published_one() -> None:
    bench = get_benchmark("icons2emoji")
    assert len(bench.classes.names) == 228
    assert bench.classes.unseen_RC.sum(1).tolist() == [57, 57, 57, 57]
    assert bench.classes.unseen_RC.sum(0).tolist() == [1] * 228
    assert bench.templates[0] == "a {} icon"
    counts = {domain: np.bincount(bench.domain(domain)["split"].to_numpy()).tolist() for domain in ("source", "target")}
    assert counts == {"source": [1096, 280, 376], "target": [568, 246, 494]}
    assert len(set(bench.images["key"].to_pylist())) == 3060


def test_every_icon_set_is_attributed() -> None:
    attribution = (ASSETS / "ATTRIBUTION.md").read_text()
    for line in (ASSETS / "icon_sets.csv").read_text().splitlines()[1:]:
        icon_set, licence = line.split(",")[:2]
        assert any(icon_set in row and licence in row for row in attribution.splitlines() if row.startswith("|"))


def test_unknown_benchmark_names_the_nearest() -> None:
    with pytest.raises(UserError, match="got 'icons2emojis'; did you mean 'icons2emoji'"):
        get_benchmark("icons2emojis")


def test_folder(folder: Path) -> None:
    bench = get_benchmark("folder:pets", data_root=folder.parent)
    assert bench.slug == "folder-pets"
    assert bench.classes.wnids == ("n02709367", "n07753592", "n02131653", "n02818832")
    assert bench.classes.unseen_RC.tolist() == [[False, False, True, True]]
    assert len(bench.domain("source")) == len(bench.domain("target")) == 16


def test_domains_by_alphabet_unless_named(folder: Path) -> None:
    (folder / "source").rename(folder / "zeichnung")
    assert get_benchmark(f"folder:{folder}").domain("source")["key"][0].as_py() == "zeichnung/anchor/0.png"
    (folder / "target").rename(folder / "emoji")
    assert get_benchmark(f"folder:{folder}").domain("source")["key"][0].as_py() == "emoji/anchor/0.png"


def test_splits_hold_every_class_out() -> None:
    assert [np.bincount(_splits([f"{i}.png" for i in range(n)]), minlength=3).tolist() for n in (0, 1, 2, 3, 20)] == [
        [0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 1, 1], [14, 3, 3],
    ]  # fmt: skip


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda root: shutil.rmtree(root), "is no folder"),
        (lambda root: (root / "classes.csv").unlink(), r"classes.csv must be a CSV file with columns name, wnid, seen"),
        (lambda root: edit(root / "classes.csv", "seen", "known"), "must have columns name, wnid, seen"),
        (
            lambda root: edit(root / "classes.csv", "bed,", "bear,"),
            "line 5: name must be unique; 'bear' is there twice",
        ),
        (lambda root: edit(root / "classes.csv", "2,0", "2,maybe"), "seen must be one of .*; got 'maybe'"),
        (lambda root: edit(root / "classes.csv", ",1", ",0"), "must hold both seen and unseen"),
        (lambda root: edit(root / "classes.csv", "n02818832", "n02131653"), "'bear' and 'bed' both have n02131653"),
        (lambda root: edit(root / "classes.csv", "n02818832", "n00000001"), "class 'bed' has 'n00000001'"),
        (lambda root: edit(root / "classes.csv", "n02818832", ""), "'bed' is ambiguous"),
        (lambda root: (root / "source" / "cat").mkdir(), "source/cat has no row in"),
        (lambda root: (root / "third").mkdir(), "must hold two domain folders.*found source, target, third"),
        (
            lambda root: shutil.rmtree(root / "source" / "anchor"),
            "every seen class needs source images; none for anchor",
        ),
        (lambda root: shutil.rmtree(root / "target" / "bed"), "every unseen class needs target images; none for bed"),
    ],
)
def test_mistakes_in_a_folder_are_one_clear_error(folder: Path, mistake: Callable[[Path], None], message: str) -> None:
    mistake(folder)
    with pytest.raises(UserError, match=message):
        get_benchmark(f"folder:{folder}")


def test_missing_and_empty_images_are_named(folder: Path, without_ray: None, tmp_path: Path) -> None:
    (folder / "source" / "bed" / "1.png").write_bytes(b"")
    (folder / "source" / "bed" / "2.png").unlink()
    (folder / "source" / "bed" / "2.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"source/bed/1.png \(empty file\); .*2.png \(No such file or directory\)$"):
        prepare(FeatureOptions(benchmark=f"folder:{folder}", clip=str(ASSETS / "clip"), cache_dir=tmp_path / "cache"))


def test_unreadable_images_are_named(folder: Path, without_ray: None, tmp_path: Path) -> None:
    (folder / "source" / "bed" / "1.png").write_bytes(b"no image")
    content = (folder / "target" / "bear" / "2.png").read_bytes()
    (folder / "target" / "bear" / "2.png").write_bytes(content[: len(content) // 2])
    allowed = r"2 of 32 images cannot be read \(max_rejected allows 0.10%\)"
    with pytest.raises(UserError, match=rf"{allowed}: source/bed/1.png \(no image.*; target/bear/2.png \("):
        prepare(FeatureOptions(benchmark=f"folder:{folder}", clip=str(ASSETS / "clip"), cache_dir=tmp_path / "cache"))


def test_every_input_changes_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    def of(clip: Path = ASSETS / "clip") -> str:
        bench = get_benchmark(f"folder:{folder}")
        return fingerprint(inputs_of(bench, find_checkpoint(clip), image_contents(bench.images)))

    seen = [of()]
    assert of() == seen[0]
    clip = Path(shutil.copytree(ASSETS / "clip", tmp_path / "clip"))
    assert of(clip) == seen[0]  # content counts, not place
    edit(clip / "preprocessor_config.json", '"resample": 3', '"resample": 2')
    seen.append(of(clip))
    edit(folder / "classes.csv", "bed", "bedstead")
    for domain in ("source", "target"):
        (folder / domain / "bed").rename(folder / domain / "bedstead")
    seen.append(of())
    image = folder / "source" / "bear" / "0.png"
    image.write_bytes(image.read_bytes() + b"\0")
    seen.append(of())
    assert len(set(seen)) == 4


def test_a_hub_checkpoint_is_identified_by_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    revision = "a1" * 20
    repo = tmp_path / "models--someone--tiny-clip"
    shutil.copytree(ASSETS / "clip", repo / "snapshots" / revision)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    checkpoint = find_checkpoint("someone/tiny-clip")
    assert checkpoint.name == "someone/tiny-clip"
    assert checkpoint.folder == repo / "snapshots" / revision
    assert checkpoint.identity["hub"] == "someone/tiny-clip" and checkpoint.identity["revision"] == revision
    with pytest.raises(UserError, match="^clip must be a folder or a Hugging Face id that can be reached; got 'a/b'"):
        find_checkpoint("a/b")


def test_checkpoints_that_are_no_clip_are_one_clear_error(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    clip = Path(shutil.copytree(ASSETS / "clip", tmp_path / "clip"))
    weights = load_file(clip / "model.safetensors")
    for prefix in ("text_model", "text_projection"):
        kept = {name: value for name, value in weights.items() if not name.startswith(prefix)}
        save_file(kept, clip / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=f"^clip must hold an image tower, a text tower.*has no {prefix}"):
            find_checkpoint(clip)
    config = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps(config | {"model_type": "clip_vision_model"}))
    with pytest.raises(UserError, match="has model_type 'clip_vision_model'"):
        find_checkpoint(clip)
    (clip / "model.safetensors").write_bytes(b"123")
    (clip / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        find_checkpoint(clip)
    with pytest.raises(
        UserError, match=r"^clip must be a folder or a Hugging Face id that can be reached; got 'a/b/c'"
    ):
        find_checkpoint("a/b/c")


def test_training_on_one_benchmark_and_testing_on_another(folder: Path) -> None:
    bench = get_benchmark("icons2emoji-gzsl->folder:pets", data_root=folder.parent)
    emoji, pets = get_benchmark("icons2emoji-gzsl"), get_benchmark("folder:pets", data_root=folder.parent)
    shared = [emoji.classes.wnids.index(wnid) for wnid in pets.classes.wnids if wnid in emoji.classes.wnids]
    assert len(shared) > 0  # one class of both, not two
    assert len(bench.classes.names) == 228 + 4 - len(shared)
    assert bench.classes.names[:228] == emoji.classes.names
    assert bench.classes.unseen_RC.nonzero()[:, 1].tolist() == list(range(228, 232 - len(shared)))
    assert {bench.classes.wnids[c] for c in bench.target_classes} == set(pets.classes.wnids)
    source, target = bench.domain("source"), bench.domain("target")
    assert source["label"].to_pylist() == emoji.domain("source")["label"].to_pylist()
    assert [bench.classes.wnids[c] for c in target["label"].to_pylist()] == [
        pets.classes.wnids[c] for c in pets.domain("target")["label"].to_pylist()
    ]
    assert source["key"][0].as_py().startswith("source/") and target["key"][0].as_py().startswith("target/")
    assert (bench.slug, bench.templates, bench.halves) == ("icons2emoji-gzsl-to-folder-pets", emoji.templates, False)


def test_classes_without_labelled_images_are_not_trained_on(folder: Path) -> None:
    pets = get_benchmark("folder:pets", data_root=folder.parent)
    bare = pets.classes.names[2]  # an unseen class may lack source images
    shutil.rmtree(folder / "source" / bare)
    bench = get_benchmark("folder:pets->icons2emoji-gzsl", data_root=folder.parent)
    seen = (~bench.classes.unseen_RC[0]).nonzero().flatten().tolist()
    assert {bench.classes.names[c] for c in seen} == set(pets.classes.names) - {bare}
    assert len(bench.target_classes) == 228
