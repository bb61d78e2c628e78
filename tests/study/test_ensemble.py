"""The ensemble: what a method's refits predict together, as a row of the leaderboard and as an adapter."""

from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from small import run

from data_prep.benchmarks import get_benchmark
from data_prep.feature_store import FeatureSet, load
from data_prep.storage import locate
from study.evaluation.leaderboard_text import difference, percent
from study.outputs.adapter_files import read_adapters
from study.outputs.prediction import Adapter, Encoder
from study.outputs.results import read_results
from study.protocol.consensus import divided_ensemble
from study.reporting.overview import headline_section


@pytest.fixture
def folder(embedded_cache: Path, tmp_path: Path, without_tune: None) -> Path:
    assert run(tmp_path, embedded_cache, "--name", "together", "--top", "3", "--test-share", "0.25") == 0
    return tmp_path / "together"


def test_refits_vote_in_the_row_and_in_its_adapter(folder: Path, embedded_cache: Path) -> None:
    board = pd.read_parquet(folder / "leaderboard.parquet").set_index("method")
    row, refits = board.loc["SRE-CLIP, ensemble"], board.loc[["SRE-CLIP"]]
    assert (row.config_id, row.n_seeds, row.selected, len(refits)) == ("sre-ensemble", 2, True, 3)
    headline = headline_section(read_results(locate(folder)))
    points = difference(-row.h_behind, -row.h_behind_hi, -row.h_behind_lo)
    sentence = f"they reach H = {percent(row.test_h_mean)}: {points} points over the selected one alone."
    assert sum(sentence in said for said in headline.paragraphs) == 1
    assert any(command.endswith("adapters/ensemble") for command in headline.commands.values())
    assert 0 < row.val_consensus <= 1 and 0 < row.new_h_mean < 1 and row.val_h_mean != row.val_h_mean
    members = read_adapters(locate(folder / "adapters/ensemble"))
    order = refits.sort_values(["selected", "val_consensus"], ascending=False)
    for member, of_one in zip(members, order.itertuples(), strict=True):
        own = read_adapters(locate(folder / "adapters" / str(of_one.rank)))
        assert own[0].config == member.config and all(
            torch.equal(own[0].weights[name], value) for name, value in member.weights.items()
        )
    # on the features of the study: each image as the row says of the first seed
    features: FeatureSet = load(embedded_cache)
    said = pd.read_parquet(folder / "predictions.parquet").query("method == 'SRE-CLIP, ensemble' and seed == 0")
    place = {key: i for i, key in enumerate(features.target.keys.to_pylist())}
    seen_TD = features.target.features_ID[[place[key] for key in said.key]]
    predicted_MT = torch.stack([m.logits(m.module(), seen_TD)[:].argmax(-1) for m in members])
    lead_T, seen_T, unseen_T = divided_ensemble(predicted_MT, members[0].data.seen_C)
    names = [features.classes.names[c] for c in torch.where(lead_T >= 0, seen_T, unseen_T).tolist()]
    assert names == list(said.predicted)
    assert any(predicted_T.tolist() != predicted_MT[0].tolist() for predicted_T in predicted_MT[1:])
    # from images
    adapter = Adapter.load(folder / "adapters/ensemble")
    image = Image.open(BytesIO(get_benchmark("icons2emoji").domain("target")["data"][0].as_py()))
    (prediction,) = adapter.with_classes("okapi").predict(image, top=1000)
    assert len(prediction.classes) == len(features.classes.names) + 1
    shares = [share for _, share in prediction.classes]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)
    assert sum(share > 0 for share in shares) <= 3


class Fixed:
    """A member, and its module, that gives an image these logits."""

    names = ("a", "b", "c")

    def __init__(self, *rows: list[float]) -> None:
        self.logits_IC = torch.tensor(rows)

    def module(self, _: str) -> torch.nn.Module:
        return torch.nn.Identity()

    def logits(self, _: torch.nn.Module, features_ID: torch.Tensor) -> torch.Tensor:
        return self.logits_IC


def test_a_class_has_its_share_of_the_votes() -> None:
    encoder = object.__new__(Encoder)
    encoder.device = "cpu"
    encoder.checkpoint = type("C", (), {"folder": ""})()  # type: ignore[assignment]
    members = [Fixed([3.0, 2.0, 0.0]), Fixed([0.0, 1.0, 0.0]), Fixed([0.0, 9.0, 0.5])]
    adapter = Adapter(members, encoder)  # type: ignore[arg-type]
    (likeliest,) = adapter._likeliest(torch.zeros(1, 4), top=3)
    # weights 1.5, 1.25, 1.125: b has two votes, a one, c none
    assert [name for name, _ in likeliest] == ["b", "a", "c"]
    assert [share for _, share in likeliest] == pytest.approx([2.375 / 3.875, 1.5 / 3.875, 0.0])
    (alone,) = Adapter(members[:1], encoder)._likeliest(torch.zeros(1, 4), top=2)  # type: ignore[arg-type]
    assert [p for _, p in alone] == pytest.approx(torch.tensor([3.0, 2.0, 0.0]).softmax(-1)[:2].tolist())
