"""Exported adapters: they predict what the study predicted, from their folder alone, and learn new class names."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from data_prep.benchmarks import get_benchmark
from data_prep.errors import UserError
from data_prep.feature_store import FeatureSet, load, load_target_labels
from data_prep.storage import Storage, locate
from models.baselines import (
    CalibratedStackingConfig,
    CLIPAdapterConfig,
    CoOpConfig,
    LinearProbeConfig,
    TipAdapterConfig,
)
from models.heads import TransductiveVoteConfig
from models.pva import PVAConfig
from models.sre_clip import SREConfig
from models.transductive import InMaPConfig, TransCLIPConfig, ZLaPConfig
from study.evaluation.leaderboard import Row
from study.outputs.adapter import TrainedAdapter, make_adapter
from study.outputs.adapter_files import read_adapter, write_adapter
from study.outputs.prediction import Adapter, find_images
from study.outputs.provenance import Environment, RecordedOptions, RefitRecord, RunRecord
from study.predict import main
from study.protocol.scores import seen_unseen
from study.protocol.trial_data import TrialData
from study.training.methods import METHODS
from study.training.refit import refit_pack

CONFIGS = (
    SREConfig(gcn_layers=2, gcn_width=8, batch_size=16),
    SREConfig(adapter="tokens", adjacency="symmetric", class_text="both", batch_size=16),
    PVAConfig(latent_dim=8, hidden=8, tau=0.25, residual_lambda=2.0, batch_size=16),
    CLIPAdapterConfig(width=4, batch_size=16),
    TipAdapterConfig(variant="free", shots=3, alpha=2.0, beta=3.0),
    TipAdapterConfig(variant="F", shots=3, batch_size=16),
    LinearProbeConfig(batch_size=16),
    CoOpConfig(batch_size=64),
    CoOpConfig(batch_size=64, prompts="per_class"),
    CalibratedStackingConfig(constant=1.5),
    ZLaPConfig(neighbours=3),
    TransCLIPConfig(),
    InMaPConfig(),
    TransductiveVoteConfig(),
)
CLIP = str(Path(__file__).parents[3] / "data_prep/assets/icons2emoji/clip")
RECORD = RefitRecord(
    seeds=(5, 6),
    rotation=0,
    epochs=2,
    run=RunRecord(
        name="toy",
        reference="M",
        options=RecordedOptions(by_group={"selection": {"folds": 3}}),
        environment=Environment(versions={"torch": torch.__version__}),
    ),
)
ROW = Row(method="M", config_id="m-0000", select="pseudo-unseen", benchmark="toy", clip="toy", feature_fingerprint="f")


def exported(config: Any, data: TrialData, features: Any, storage: Storage) -> tuple[TrainedAdapter, torch.Tensor]:
    """A refit's adapter, written and read again, and what the refit predicted."""
    texts = {
        "classes": SimpleNamespace(names=data.class_names, wnids=(None,) * 12),
        "graph": SimpleNamespace(node_wnids=tuple(f"class:{name}" for name in data.class_names) + tuple("abcdef")),
    }
    of_study: Any = SimpleNamespace(**{**vars(features), **texts, "templates": (data.template, "{}"), "clip": "toy"})
    (done,) = refit_pack([config], seeds=[5, 6], data=data, epochs=2)
    adapter = make_adapter(config, 5, done.weights, data, of_study, {"files": {}})
    metrics = dict.fromkeys(("test_seen_mean", "test_unseen_mean", "test_h"), 0.5)
    write_adapter(storage, "adapters/1", adapter, row=ROW, metrics=metrics, record=RECORD)
    return read_adapter(storage / "adapters" / "1"), done.predictions_ST[0]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_an_adapter_predicts_what_the_refit_predicted(
    config: Any, data: TrialData, features: SimpleNamespace, tmp_path: Path
) -> None:
    adapter, expected_T = exported(config, data, features, locate(str(tmp_path)))
    logits_KTC = adapter.module(CLIP).logits(data.target_features_TD)
    assert logits_KTC.shape == (1, 120, 12)
    assert torch.equal(logits_KTC[0].argmax(-1), expected_T)
    assert adapter.names == data.class_names and adapter.wnids == (None,) * 12 and adapter.config == config
    more = adapter.with_classes([("n-e-w", ""), ("new too", "")] if not isinstance(config, SREConfig) else NEW, encode)
    grown_KTC = more.module(CLIP).logits(data.target_features_TD)
    assert grown_KTC.shape == (1, 120, 12 + (2 if more.names[-1] == "new too" else len(NEW)))
    # there the graph, the choice between old and new, or the fit to the target images may change
    if not isinstance(config, SREConfig | PVAConfig | ZLaPConfig | TransCLIPConfig | TransductiveVoteConfig):
        assert torch.allclose(grown_KTC[:, :, :12], logits_KTC, atol=1e-4)
    assert not more.data.seen_C[12:].any()


NEW = [("zebra", ""), ("gizmo, or two", "-"), ("crane", "n02012849")]


def encode(texts: Any) -> torch.Tensor:
    """Unit vectors that only depend on the text."""
    rows = [torch.randn(192, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def test_every_method_can_be_exported() -> None:
    assert {type(config) for config in CONFIGS} == set(METHODS)


def test_new_classes_take_their_places_in_wordnet(data: TrialData, features: SimpleNamespace, tmp_path: Path) -> None:
    adapter, _ = exported(CONFIGS[0], data, features, locate(str(tmp_path)))
    more = adapter.with_classes(NEW, encode)
    assert more.wnids[12:] == ("n02391049", None, "n02012849")
    parents = {
        (more.node_wnids[c], more.node_wnids[p]) for c, p in more.data.edges_E2.tolist() if c >= len(adapter.node_wnids)
    }
    assert ("n02391049", "n02374149") in parents  # zebra, equine
    assert ("n00001930", "n00001740") in parents  # up to physical entity, entity
    assert not any("gizmo" in child for child, _ in parents)
    assert torch.equal(more.data.edges_E2[: len(data.edges_E2)], data.edges_E2)
    again = more.with_classes([("equine", "n02374149")], encode)  # a node that is there already
    assert again.node_wnids == more.node_wnids and again.data.class_node_C[-1] == more.node_wnids.index("n02374149")
    storage = locate(str(tmp_path / "grown"))
    metrics = dict.fromkeys(("test_seen_mean", "test_unseen_mean", "test_h"), 0.5)
    write_adapter(storage, "1", more, row=ROW, metrics=metrics, record=RECORD)
    back = read_adapter(storage / "1")  # the comma survives
    assert (back.names, back.wnids, back.node_wnids) == (more.names, more.wnids, more.node_wnids)
    for added, message in (
        ([("crane", "")], "'crane' is ambiguous"),
        ([("zebra", "n99999999")], "must be a noun of WordNet"),
        ([("cat", "-")], "names that are not there yet"),
        ([("", "-")], "names that are not there yet"),
    ):
        with pytest.raises(UserError, match=message):
            adapter.with_classes(added, encode)
    with pytest.raises(UserError, match="n02391049 is 'zebra'"):
        more.with_classes([("Equus", "n02391049")], encode)


def test_a_damaged_folder_is_one_clear_line(data: TrialData, features: SimpleNamespace, tmp_path: Path) -> None:
    exported(CONFIGS[0], data, features, locate(str(tmp_path)))
    folder = tmp_path / "adapters" / "1"
    with pytest.raises(UserError, match="adapter must be a folder"):
        read_adapter(locate(str(tmp_path)))
    with pytest.raises(UserError, match="adapters/7 has no config.json; beside it are 1$"):
        read_adapter(locate(str(tmp_path / "adapters" / "7")))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"method": "os.system"}))
    with pytest.raises(UserError, match="plugin must name the file or module of os.system, the method of "):
        read_adapter(locate(str(folder)))
    for broken in ({"method": ["x"]}, {"config": {"lr": -1.0}}, {"templates": 3}, {"format": 99}):
        (folder / "config.json").write_text(json.dumps(config | broken))
        with pytest.raises(UserError, match="adapter .* (is damaged|has format 99)"):
            read_adapter(locate(str(folder)))
    for template in ("{0:>300000000}", "{0.__class__}", "{}{}", "{}" + "x" * 2000, "{name}", 3):
        (folder / "config.json").write_text(json.dumps(config | {"templates": [template]}))
        with pytest.raises(UserError, match="adapter (must have prompt templates|.* is damaged)") as error:
            read_adapter(locate(str(folder)))
        assert len(str(error.value)) < 1000
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match="is damaged"):
        read_adapter(locate(str(folder)))


def test_a_spreadsheet_runs_no_class_name(data: TrialData, features: SimpleNamespace, tmp_path: Path) -> None:
    adapter, _ = exported(CONFIGS[-1], data, features, locate(str(tmp_path)))
    names = ("=1+1", "+1", "-x", "@x", "'=1", "''-1", "\tx", "'n", "-", "plain", "a=b", '="a","b"')
    storage = locate(str(tmp_path))
    metrics = dict.fromkeys(("test_seen_mean", "test_unseen_mean", "test_h"), 0.5)
    write_adapter(storage, "2", replace(adapter, names=names), row=ROW, metrics=metrics, record=RECORD)
    cells = (tmp_path / "2" / "classes.csv").read_text().splitlines()[1:]
    assert not [cell for cell in cells if cell.startswith(('"=', '"+', '"-x', '"@', '"\t'))]
    assert read_adapter(storage / "2").names == names


def test_an_adapter_downloads_nothing_in_silence(
    data: TrialData, features: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = exported(CONFIGS[-1], data, features, locate(str(tmp_path)))
    identity = {"hub": "someone/clip", "revision": "a1" * 20}
    metrics = dict.fromkeys(("test_seen_mean", "test_unseen_mean", "test_h"), 0.5)
    foreign, storage = replace(adapter, clip_identity=identity), locate(str(tmp_path))
    write_adapter(storage, "2", foreign, row=ROW, metrics=metrics, record=RECORD)
    calls: list[tuple[Any, bool]] = []

    def download(repo: str, *, revision: str, local_files_only: bool, **_: Any) -> str:
        calls.append((revision, local_files_only))
        raise OSError("not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    message = "clip must be given, or its download allowed .*: the adapter needs someone/clip"
    with pytest.raises(UserError, match=message):
        Adapter.load(tmp_path / "2")
    assert calls == [("a1" * 20, True)]
    with pytest.raises(UserError, match="can be reached; got 'someone/clip'"):
        Adapter.load(tmp_path / "2", allow_download=True)
    assert calls[1:] == [("a1" * 20, True), ("a1" * 20, False)]


# --- the embedded benchmark -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The target images as files, in order."""
    folder, paths = tmp_path_factory.mktemp("images"), []
    for i, content in enumerate(get_benchmark("icons2emoji").domain("target")["data"].to_pylist()):
        paths.append(folder / f"{i}.png")
        paths[-1].write_bytes(content)
    return paths


def folder_of(study: Path, method: str) -> Path:
    table = pd.read_parquet(study / "leaderboard.parquet")
    return study / "adapters" / str(table[table.method == method]["rank"].item())


@pytest.fixture(scope="session")
def adapter_folder(small_study: Path) -> Path:
    return folder_of(small_study, "SRE-CLIP")


@pytest.mark.parametrize("method", ["SRE-CLIP", "SRE-CLIP, calibrated"])
def test_predict_gives_the_studys_own_predictions(
    method: str, small_study: Path, embedded_cache: Path, images: list[Path]
) -> None:
    adapter_folder = folder_of(small_study, method)
    features: FeatureSet = load(embedded_cache)
    labels_T, seen_C = load_target_labels(embedded_cache), ~features.classes.unseen_RC[0]
    classes = [p.classes[0][0] for p in Adapter.load(adapter_folder).predict(images, top=1)]
    predicted_T = torch.tensor([features.classes.names.index(name) for name in classes])
    adapter = read_adapter(locate(str(adapter_folder)))
    from_cache_T = adapter.logits(adapter.module(), features.target.features_ID).argmax(-1)
    assert int((predicted_T != from_cache_T).sum()) <= 1  # other batches round the features differently
    config = json.loads((adapter_folder / "config.json").read_text())
    seen, unseen, h = (float(x) for x in seen_unseen(from_cache_T[None], labels_T, seen_C))
    assert [config["metrics"][m] for m in ("test_seen_mean", "test_unseen_mean", "test_h")] == [seen, unseen, h]
    said = "is subtracted from logits of seen classes" in (adapter_folder / "README.md").read_text()
    assert (adapter.seen_constant != 0) == said == method.endswith("calibrated")
    row = config["leaderboard"]
    assert abs(h - row["test_h_mean"]) == pytest.approx(row["test_h_std"] / 2**0.5, abs=1e-6)  # of two seeds


def test_predict_works_without_ray_and_without_the_cache(adapter_folder: Path, images: list[Path]) -> None:
    code = "import sys; sys.modules['ray'] = None; from study.predict import main; sys.exit(main(sys.argv[1:]))"
    arguments = [str(images[0]), str(images[1]), "--adapter", str(adapter_folder), "--top", "2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--classes", "zebra crossing=-, okapi"],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": "/usr/bin"},
        cwd=adapter_folder,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == arguments[:2]
    assert all(line.count(" %") == 2 for line in lines)


def test_new_classes_compete(adapter_folder: Path, images: list[Path]) -> None:
    count = len(read_adapter(locate(str(adapter_folder))).names)
    grown = Adapter.load(adapter_folder).with_classes("okapi", " my gadget=-")
    (prediction,) = grown.predict(images[0], top=1000)
    assert len(prediction.classes) == count + 2 and {"okapi", "my gadget"} < {name for name, _ in prediction.classes}
    assert sum(p for _, p in prediction.classes) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "IMAGES must be at least one file or folder, or a --list of them; got none"),
        ("IMAGE --output x.xls", "--output must end in .csv, .json, .jsonl; got x.xls"),
        ("IMAGE --output /no/where.csv", "--output must be a file that can be written; /no/where.csv: No such file"),
        ("--list /no/list", "--list must be a text file in UTF-8; /no/list: "),
        ("IMAGE --top 0", "--top must be at least 1, got 0"),
        ("/no/such.png", "IMAGES must be readable, 1 of 1 are not: /no/such.png: No such file or directory"),
        ("IMAGE --clip /nowhere", "--clip must be a folder"),
        ("IMAGE --classes crane", "'crane' is ambiguous"),
        ("IMAGE --adapter /nowhere", "--adapter must be a folder of <study>/adapters, /nowhere has no config.json"),
        ("IMAGE --adapter x://y", "--adapter must be a folder or a URI"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: str, message: str, adapter_folder: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments.replace("IMAGE", str(images[0])).split()
    if "--adapter" not in given:
        given += ["--adapter", str(adapter_folder)]
    try:
        code = main(given)
    except SystemExit as exit_:  # tyro's own errors
        code = exit_.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_card_says_what_it_is(adapter_folder: Path) -> None:
    card = (adapter_folder / "README.md").read_text()
    for part in (
        "# SRE-CLIP on icons2emoji",
        "± ",
        "`--select pseudo-unseen`",
        "3000, 3001",
        "fingerprint `",
        "torch 2",
    ):
        assert part in card, part


def test_folders_lists_and_broken_images(
    adapter_folder: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("b.png", "more/=1+1.png", "more/東.png")):
        (folder / name).write_bytes(images[i].read_bytes())
    for name in ("Thumbs.db", "LICENSE.txt", ".hidden.png"):
        (folder / name).write_bytes(b"none")
    (folder / "broken.png").write_bytes(images[0].read_bytes()[:40])
    listed = tmp_path / "list.txt"
    listed.write_text(f"{images[3]}\n\n  {images[4]}\n", encoding="utf-8-sig")
    names = ["b.png", "broken.png", "more/=1+1.png", "more/東.png"]
    paths = [*(f"{folder}/{name}" for name in names), str(images[3]), str(images[4])]
    given = [str(folder), "--list", str(listed), "--adapter", str(adapter_folder), "--top", "2"]
    assert main(given) == 2  # and yet:
    printed, said = capsys.readouterr()
    assert [line.partition(": ")[0] for line in printed.splitlines()] == paths
    assert "IMAGES must be readable, 1 of 6 are not: " in said and "broken.png: " in said
    expected = [[name for name, _ in p.classes] for p in Adapter.load(adapter_folder).predict(paths, top=2)]
    assert [len(found) for found in expected] == [2, 0, 2, 2, 2, 2]
    for suffix in (".json", ".jsonl", ".csv"):
        output = tmp_path / f"out{suffix}"
        assert main([*given, "--output", str(output)]) == 2
        if suffix == ".csv":
            table = pd.read_csv(output)
            assert list(table) == ["image", "rank", "class", "probability", "error"]
            assert table.groupby("image", sort=False)["class"].apply(lambda c: list(c.dropna())).tolist() == expected
            assert list(table.image.unique()) == paths and table.error.notna().sum() == 1
        else:
            found = pd.read_json(output, lines=suffix == ".jsonl")
            assert list(found.image) == paths
            assert [[c["name"] for c in of_image] for of_image in found.classes] == expected
            assert list(found.error.isna()) == [True, False, True, True, True, True]
    assert (
        main([str(tmp_path / "list.txt"), "--adapter", str(adapter_folder), "--output", str(tmp_path / "o.json")]) == 2
    )
    assert len(json.loads((tmp_path / "o.json").read_text())) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="IMAGES must be image files or folders with images; .*empty holds none"):
        find_images([tmp_path / "empty"])


def test_opened_images_are_predicted_as_their_files(adapter_folder: Path, images: list[Path]) -> None:
    adapter = Adapter.load(adapter_folder)
    with Image.open(images[0]) as opened:
        (by_image,) = adapter.predict(opened)
    (by_path,) = adapter.predict(str(images[0]))
    assert (by_image.classes, by_image.image) == (by_path.classes, "image 0")
    assert by_path.image == str(images[0])


def test_an_adapter_of_given_features_cannot_see_images(
    data: TrialData, features: SimpleNamespace, tmp_path: Path
) -> None:
    adapter, _ = exported(CONFIGS[-1], data, features, locate(str(tmp_path)))
    metrics = dict.fromkeys(("test_seen_mean", "test_unseen_mean", "test_h"), 0.5)
    given = replace(adapter, clip="feats/texts.npz", clip_identity={"files": {"texts.npz": "ab"}, "processor": []})
    write_adapter(locate(str(tmp_path)), "2", given, row=ROW, metrics=metrics, record=RECORD)
    with pytest.raises(UserError, match=r"^adapter must come from a study with a checkpoint; .*\(feats/texts.npz\)"):
        Adapter.load(tmp_path / "2")
