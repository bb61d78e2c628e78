"""Target images without labels: a study of features whose target has all, half or none of its labels."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from small import run

from data_prep.storage import locate
from study import read_leaderboard, show_leaderboard
from study.evaluation.leaderboard import UNSCORED_NOTE
from study.outputs.adapter_files import read_adapter
from study.protocol.scores import seen_unseen

LABELLED = ("all", "half", "none")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unlabelled")


@pytest.fixture
def studies(features: SimpleNamespace, storage: Path, embedded_cache: Path, without_tune: None) -> dict[str, Path]:
    """Folders of three studies that differ in nothing but the labels of target images."""
    folders = {kind: storage / kind for kind in LABELLED}
    names, seen = features.classes.names, ~features.classes.unseen_RC[0]
    for kind, folder in folders.items():
        if (folder / "leaderboard.parquet").exists():
            continue
        given = storage / f"features-{kind}"
        given.mkdir()
        of_target = np.array(names)[features.target_labels].astype(object)
        of_target[{"all": slice(0), "half": slice(None, None, 2), "none": slice(None)}[kind]] = ""
        np.savez(
            given / "features.npz",
            features=torch.cat([features.source.features_ID, features.target.features_ID]).numpy(),
            labels=np.concatenate([np.array(names)[features.source_labels_I], of_target.astype(str)]),
            domains=np.array(["source"] * len(features.source_labels_I) + ["target"] * len(of_target)),
        )
        np.savez(given / "texts.npz", features=features.name_features_CPD.numpy(), logit_scale=20.0)
        rows = [f"{name},-,{int(is_seen)}" for name, is_seen in zip(names, seen, strict=True)]
        (given / "classes.csv").write_text("\n".join(["name,wnid,seen", *rows, ""]))
        what = f"--space sre --set gcn_layers=0 --benchmark features:{given} --name {kind} --test-share 0.2"
        assert run(storage, embedded_cache, *what.split()) == 0
    return folders


def predictions(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions.parquet")


def test_labels_of_the_target_choose_nothing_and_change_no_prediction(studies: dict[str, Path]) -> None:
    tables = {kind: read_leaderboard(folder).set_index(["method", "config_id"]) for kind, folder in studies.items()}
    of_all = predictions(studies["all"]).drop(columns=["label", "study"])
    order = ["method", "seed", "key"]
    for kind in ("half", "none"):
        mine = predictions(studies[kind]).drop(columns=["label", "study"])
        pd.testing.assert_frame_equal(
            mine.sort_values(order, ignore_index=True), of_all.sort_values(order, ignore_index=True)
        )
        for column in ("selected", "val_h_mean", "val_consensus", "params", "test_other_side"):
            pd.testing.assert_series_equal(tables[kind][column].sort_index(), tables["all"][column].sort_index())


def test_those_with_a_label_are_scored(studies: dict[str, Path], features: SimpleNamespace) -> None:
    table, seen_C = read_leaderboard(studies["half"]), ~features.classes.unseen_RC[0]
    index = {name: c for c, name in enumerate(features.classes.names)}
    own = predictions(studies["half"]).query("method == 'SRE-CLIP'")
    labelled = own[own.label != ""]
    assert 0 < len(labelled) < len(own)
    h = []
    for _, of_seed in labelled.groupby("seed"):
        predicted_T, labels_T = (torch.tensor(of_seed[name].map(index).to_numpy()) for name in ("predicted", "label"))
        h.append(float(seen_unseen(predicted_T[None], labels_T, seen_C)[2]))
    row = table[table.selected & (table.method == "SRE-CLIP")].iloc[0]
    assert row.test_h_mean == pytest.approx(np.mean(h), abs=1e-6) and row.h_gain_lo <= row.h_gain <= row.h_gain_hi
    assert row.new_h_mean >= 0 and (studies["half"] / "per_class.parquet").exists()


def test_without_any_label_nothing_is_scored_and_all_the_rest_is_there(studies: dict[str, Path]) -> None:
    folder = studies["none"]
    table = read_leaderboard(folder)
    scores = [name for name in table.columns if re.match("test_(?!other_side)|new_|h_", name)]
    assert len(scores) > 20 and table[scores].isna().all(axis=None)
    assert (table.method[0], table.selected[0]) == ("SRE-CLIP", True)  # the study's choice stands first
    assert UNSCORED_NOTE in (folder / "leaderboard.md").read_text()
    page = (folder / "report.html").read_text()
    assert (
        UNSCORED_NOTE.partition(":")[0] in page
        and "so nothing is scored" in page
        and "None" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    )
    assert not (folder / "resamples.parquet").exists() and not (folder / "per_class.parquet").exists()
    assert (predictions(folder).label == "").all()
    show_leaderboard(folder).to_html()
    card = (folder / "adapters/selected/README.md").read_text()
    assert "no target image had a label" in card and "No target image had a label." in card
    assert read_adapter(locate(folder / "adapters/selected")).config is not None


def test_what_needs_labels_is_one_line(
    studies: dict[str, Path], storage: Path, embedded_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, options, message in (
        ("half", "--space sre --select oracle", "--select must be pseudo-unseen: an oracle needs the label of every "),
        ("none", "--space sre-ablation", "--space must be no ablation where no target image has a label"),
    ):
        what = f"{options} --benchmark features:{storage}/features-{kind} --name wrong-{kind}"
        assert run(storage, embedded_cache, *what.split()) == 2
        assert message in " ".join(capsys.readouterr().err.split())
