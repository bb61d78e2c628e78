"""Benchmarks, checkpoints, and what users get wrong about them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import FeatureOptions, UserError, prepare
from data_prep.__main__ import main as data_prep_main
from data_prep.benchmarks import get_benchmark, with_roles
from data_prep.benchmarks.icons2emoji import ASSETS
from data_prep.benchmarks.own_data import deal_splits
from data_prep.cache_build import inputs_of
from data_prep.checkpoint import find_checkpoint
from data_prep.feature_store import read_cache_table
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


@pytest.mark.parametrize(
    "pair", [("train", "eval"), ("training", "held_out"), ("photos", "test"), ("src", "tgt"), ("target", "zeichnung")]
)
def test_roles_of_folders_are_never_guessed(folder: Path, pair: tuple[str, str]) -> None:
    (folder / "target").rename(folder / "second")
    (folder / "source").rename(folder / pair[0])
    (folder / "second").rename(folder / pair[1])
    with pytest.raises(UserError, match="say which is which with --source NAME --target NAME"):
        get_benchmark(f"folder:{folder}")
    said = get_benchmark(with_roles(f"folder:{folder}", *pair))
    assert said.domain("source")["key"][0].as_py() == f"{pair[0]}/anchor/0.png"
    assert said.domain("target")["key"][0].as_py() == f"{pair[1]}/anchor/0.png"


def test_roles_that_make_no_sense_are_one_clear_error(folder: Path) -> None:
    with pytest.raises(UserError, match=r"must be a folder of .*; got 'sorce' \(nearest: source\)"):
        get_benchmark(with_roles(f"folder:{folder}", "sorce", "target"))
    with pytest.raises(UserError, match="^target must be given together with --source; got none"):
        with_roles(f"folder:{folder}", "source", None)
    with pytest.raises(
        UserError, match="must come with --benchmark folder:PATH or features:PATH or hf:PATH; got icons2emoji"
    ):
        with_roles("icons2emoji", "a", "b")


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Testing"), ("train", "validation", "test")])
def test_splits_of_one_domain_are_read_as_such(folder: Path, names: tuple[str, ...]) -> None:
    (folder / "source").rename(folder / names[0])
    (folder / "target").rename(folder / names[-1])
    if len(names) == 3:
        shutil.copytree(folder / "train", folder / names[1])
    bench = get_benchmark(f"folder:{folder}")
    keys, splits = (bench.domain("source")[name].to_pylist() for name in ("key", "split"))
    assert {key.split("/")[0]: split for key, split in zip(keys, splits, strict=True)} == dict(
        zip(names[:-1], range(2), strict=False)
    )
    assert set(bench.domain("target")["split"].to_pylist()) == {2}
    assert {key.split("/")[0] for key in bench.domain("target")["key"].to_pylist()} == {names[-1]}


def test_one_domain_without_splits_is_dealt(folder: Path) -> None:
    for name in ("anchor", "banana", "bear", "bed"):
        (folder / "target" / name).rename(folder / name)
    shutil.rmtree(folder / "source")
    shutil.rmtree(folder / "target")
    bench = get_benchmark(f"folder:{folder}")
    of = {d: [key.split("/")[0] for key in bench.domain(d)["key"].to_pylist()] for d in ("source", "target")}
    assert {name: of["source"].count(name) for name in ("anchor", "banana", "bear", "bed")} == {
        "anchor": 3, "banana": 3, "bear": 0, "bed": 0,
    }  # fmt: skip
    assert {name: of["target"].count(name) for name in ("anchor", "bear")} == {"anchor": 1, "bear": 4}
    assert bench.notes[0].startswith("labelled source: 6 images of 2 seen classes, 0 of 0 unseen classes; anchor/")


def test_target_images_outside_of_class_folders_have_no_label(folder: Path) -> None:
    for file in [*(folder / "target" / "anchor").iterdir(), folder / "target" / "bear" / "0.png"]:
        file.rename(folder / "target" / f"{file.parent.name}-{file.name}")
    (folder / "target" / "anchor").rmdir()
    bench = get_benchmark(f"folder:{folder}")
    labels = dict(zip(*(bench.domain("target")[name].to_pylist() for name in ("key", "label")), strict=True))
    assert {key for key, label in labels.items() if label == -1} == {
        *(f"target/anchor-{i}.png" for i in range(4)), "target/bear-0.png",
    }  # fmt: skip
    assert len(labels) == 16 and sorted(set(labels.values())) == [-1, 1, 2, 3]
    assert bench.notes[1].startswith(
        "unlabelled target: 4 images of 1 seen classes, 7 of 2 unseen classes, 5 images without a label, which are not"
    )
    shutil.rmtree(folder / "target" / "bed")  # it may be among them
    for name in ("banana", "bear"):
        shutil.rmtree(folder / "target" / name)
    assert get_benchmark(f"folder:{folder}").notes[1].startswith("unlabelled target: 5 images without a label, which")
    (folder / "target" / "bear-0.png").rename(folder / "source" / "bear-0.png")
    with pytest.raises(UserError, match="source/bear-0.png must be in the folder of its class, .*/source/<class>/"):
        get_benchmark(f"folder:{folder}")


@pytest.mark.parametrize(
    "text",
    [
        "Name;WNID;Seen\nanchor;n02709367;1\nbanana;n07753592;yes\nbear;n02131653;0\nbed;n02818832;no\n",
        "\ufeffname\tseen\twnid\nanchor\t1\tn02709367\nbanana\t1\tn07753592\nbear\t0\tn02131653\nbed\t0\tn02818832\n",
        " name , wnid , seen \n anchor , n02709367 , TRUE \nbanana,n07753592,1\n\nbear, n02131653,0\nbed,n02818832,0",
        'name,wnid,seen,gloss\nanchor,n02709367,1,"a\nb"\nbanana,n07753592,1,\nbear,n02131653,0,\nbed,n02818832,0,\n',
        "sep=;\nname;wnid;seen\nanchor;n02709367;1\nbanana;n07753592;1\nbear;n02131653;0\nbed;n02818832;0\n",
    ],
)
def test_dialects_of_the_class_table_are_read(folder: Path, text: str) -> None:
    (folder / "classes.csv").write_text(text)
    bench = get_benchmark(f"folder:{folder}")
    assert bench.classes.wnids == ("n02709367", "n07753592", "n02131653", "n02818832")
    assert bench.classes.unseen_RC.tolist() == [[False, False, True, True]]


def test_names_are_the_same_in_either_unicode_form(folder: Path) -> None:
    edit(folder / "classes.csv", "bed,", "b\u00e9d,")
    for domain in ("source", "target"):
        (folder / domain / "bed").rename(folder / domain / "be\u0301d")
    assert get_benchmark(f"folder:{folder}").classes.names[3] == "b\u00e9d"


def test_what_is_no_image_is_passed_over_and_said(folder: Path) -> None:
    for litter in ("source/bed/Thumbs.db", "source/LICENSE.txt", "target/bear/desktop.ini", "target/bear/._0.png"):
        (folder / litter).write_bytes(b"x")
    for litter in ("source/@eaDir", "__MACOSX", "source/.ipynb_checkpoints"):
        (folder / litter).mkdir()
    bench = get_benchmark(f"folder:{folder}")
    assert len(bench.domain("source")) == len(bench.domain("target")) == 16
    assert bench.notes[2] == (
        "passed over: source/@eaDir, source/LICENSE.txt, source/bed/Thumbs.db, target/bear/desktop.ini"
    )


def test_a_file_name_that_is_no_utf8_is_named(folder: Path) -> None:
    image = folder / "source" / "bed" / "0.png"
    image.rename(os.fsdecode(os.fsencode(image.parent) + b"/caf\xe9.png"))
    with pytest.raises(UserError, match=r"must be UTF-8; source/bed/caf\\xe9.png is not: rename it"):
        get_benchmark(f"folder:{folder}")


def test_splits_hold_every_class_out() -> None:
    for n, counts in ((0, [0, 0, 0]), (1, [1, 0, 0]), (2, [2, 0, 0]), (3, [1, 1, 1]), (20, [14, 3, 3])):
        assert np.bincount(deal_splits([f"{i}.png" for i in range(n)]), minlength=3).tolist() == counts


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda root: shutil.rmtree(root), "is no folder"),
        (
            lambda root: (root / "classes.csv").unlink(),
            r"classes.csv must be a CSV file in UTF-8 with columns name, wnid, seen",
        ),
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
        (lambda root: (root / "third").mkdir(), "must hold source and target.*found source, target, third"),
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


@pytest.mark.parametrize(
    ("domain", "name", "message"),
    [
        ("source", "banana", "every seen class needs source images that can be read; none for banana"),
        ("target", "bed", "every unseen class needs target images that can be read; none for bed"),
    ],
)
def test_a_class_may_not_lose_all_its_images(
    domain: str, name: str, message: str, folder: Path, without_ray: None, tmp_path: Path
) -> None:
    for image in (folder / domain / name).iterdir():
        image.write_bytes(b"no image")
    options = {"clip": str(ASSETS / "clip"), "cache_dir": tmp_path / "cache", "max_rejected": 0.5}
    with pytest.raises(UserError, match=message):
        prepare(FeatureOptions(benchmark=f"folder:{folder}", **options))


@pytest.mark.parametrize("long", ["names", "template"])
def test_texts_that_the_text_tower_cannot_tell_apart_are_refused(
    long: str, folder: Path, without_ray: None, tmp_path: Path
) -> None:
    words, options = (
        "a small round printed circuit board with two short metal pins and a blue plastic housing for a ",
        {},
    )
    if long == "template":
        options = {"templates": (f"{words}{words}{{}}",)}
    else:
        for old, new in (("bear", f"{words}washing machine"), ("bed", f"{words}refrigerator")):
            edit(folder / "classes.csv", f"{old},", f"{new},")
            for domain in ("source", "target"):
                (folder / domain / old).rename(folder / domain / new)
    with pytest.raises(UserError, match="texts of classes must differ within what the text tower reads; .* do not"):
        prepare(
            FeatureOptions(
                benchmark=f"folder:{folder}", clip=str(ASSETS / "clip"), cache_dir=tmp_path / "cache", **options
            )
        )


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
    (folder / "target" / "bear" / "0.png").rename(folder / "target" / "0.png")  # without a label it stays so
    target = get_benchmark("icons2emoji-gzsl->folder:pets", data_root=folder.parent).domain("target")
    assert dict(zip(*(target[name].to_pylist() for name in ("key", "label")), strict=True))["target/target/0.png"] == -1
    assert (bench.slug, bench.templates, bench.halves) == ("icons2emoji-gzsl-to-folder-pets", emoji.templates, False)


def test_classes_without_labelled_images_are_not_trained_on(folder: Path) -> None:
    pets = get_benchmark("folder:pets", data_root=folder.parent)
    bare = pets.classes.names[2]  # an unseen class may lack source images
    shutil.rmtree(folder / "source" / bare)
    bench = get_benchmark("folder:pets->icons2emoji-gzsl", data_root=folder.parent)
    seen = (~bench.classes.unseen_RC[0]).nonzero().flatten().tolist()
    assert {bench.classes.names[c] for c in seen} == set(pets.classes.names) - {bare}
    assert len(bench.target_classes) == 228


def test_cut_texts_and_images_of_several_frames_are_counted(
    folder: Path, tmp_path: Path, without_ray: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = folder / "source" / "bed"
    with Image.open(bed / "0.png") as first, Image.open(bed / "1.png") as second:
        first.convert("RGB").save(bed / "0.gif", save_all=True, append_images=[second.convert("RGB")])
    long = (
        "{} beside a small round printed circuit board with two short metal pins and a blue plastic housing for a pump"
    )
    given = ["--benchmark", f"folder:{folder}", "--clip", str(ASSETS / "clip"), "--cache-dir", str(tmp_path / "cache")]
    monkeypatch.setattr("sys.argv", ["data_prep", "features", *given, "--templates", long, "{}"])
    assert data_prep_main() == 0
    said = " ".join(capsys.readouterr().out.split())
    (cache,) = (tmp_path / "cache").glob("folder-*[!s]")
    words = {lemma for lemmas in read_cache_table(cache, "nodes")["lemmas"].to_pylist() for lemma in lemmas}
    cut = len(words | {"anchor", "banana", "bear", "bed"})  # each in the long prompt, none alone
    assert f"{cut} texts are longer than the text tower reads: their ends are cut" in said
    assert "1 images have several frames: the first one counts" in said
    assert "labelled source: 8 images of 2 seen classes" in said
