"""Finished configurations as runs of others' trackers, read back with the trackers' own readers."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from rows import ROWS

from data_prep.errors import UserError
from data_prep.storage import locate
from study.evaluation.leaderboard import rank_rows
from study.outputs import trackers
from study.search.records import Configuration

DONE = [
    Configuration(
        index=i,
        number=i,
        config_id=f"sre-000{i}",
        params={"lr": 0.01 * (i + 1), "adapter": "tokens"},
        seed=7,
        state="complete",
        score=0.5 + i,
        metrics={"val_h_mean": 0.4 + i},
        curve=[(2, 0.25), (4, 0.5 + i)],
        epochs=4,
        train_seconds=1.0,
        reason="",
        pareto=False,
    )
    for i in range(2)
]


ROWS_OF_RESULT = rank_rows([replace(row, test_seen_mean=0.5) for row in ROWS])


def result(tmp_path: Path) -> dict[str, Any]:
    """A study's folder, its adapter's and its rows, as `log_result` takes them."""
    study = locate(tmp_path / "results/my-study")
    study.write("leaderboard.md", b"| table |")
    study.write("report.html", b"page")
    adapter = study / "adapters/selected"
    adapter.write("adapter.safetensors", b"weights")
    return {"storage": study, "adapter": adapter, "rows": ROWS_OF_RESULT, "study": "my-study", "folder": tmp_path}


def scalars_of(file: Path, tags: tuple[str, ...]) -> list[tuple[str, int, float]]:
    """The scalars in a file of TensorBoard: tag, step, value."""
    from tensorboardX.proto.event_pb2 import Event

    content, scalars = file.read_bytes(), []
    while content:  # TFRecord: length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        scalars += [(v.tag, event.step, v.simple_value) for v in event.summary.value if v.tag in tags]
        content = content[16 + length :]
    return scalars


def test_tensorboard_has_a_run_with_its_curve_for_each_configuration(tmp_path: Path) -> None:
    trackers.log_configurations("tensorboard", DONE, study="s", folder=tmp_path)
    folders = sorted(p.name for p in (tmp_path / "tensorboard").iterdir())
    assert folders == ["sre-0000", "sre-0001"]
    events, hparams = sorted((tmp_path / "tensorboard" / "sre-0001").iterdir(), key=lambda path: path.is_dir())
    assert hparams.name == "hparams" and list(hparams.iterdir())  # TensorBoard's tab HPARAMS
    scalars = scalars_of(events, ("score", "val_h_mean"))
    assert scalars == [("score", 2, 0.25), ("score", 4, 1.5), ("val_h_mean", 4, pytest.approx(1.4))]


def test_mlflow_has_a_run_for_each_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    trackers.log_configurations("mlflow", DONE, study="my-study", folder=tmp_path)
    runs = mlflow.search_runs(experiment_names=["my-study"], output_format="list")
    by_name = {run.info.run_name: run.data for run in runs}
    assert sorted(by_name) == ["sre-0000", "sre-0001"]
    assert by_name["sre-0001"].params == {"lr": "0.02", "adapter": "tokens"}
    assert by_name["sre-0001"].metrics == {"score": 1.5, "val_h_mean": 1.4}
    trackers.log_result("mlflow", **result(tmp_path), console=Console())
    runs = mlflow.search_runs(experiment_names=["my-study"], output_format="list")
    (run,) = (run for run in runs if run.info.run_name == "leaderboard")
    assert run.data.metrics["SRE-CLIP/test_h_mean"] == pytest.approx(0.32)
    client = mlflow.MlflowClient()
    assert {f.path for f in client.list_artifacts(run.info.run_id)} == {"adapter", "leaderboard.md", "report.html"}
    assert [f.path for f in client.list_artifacts(run.info.run_id, "adapter")] == ["adapter/adapter.safetensors"]


def test_wandb_writes_offline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trackers.log_configurations("wandb", DONE[:1], study="my-study", folder=tmp_path)
    (run,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"my-study" in run.read_bytes() and b"sre-0000" in run.read_bytes()
    trackers.log_result("wandb", **result(tmp_path), console=Console())
    content = b"".join(file.read_bytes() for file in (tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert b"my-study-adapter" in content and b"adapter.safetensors" in content and b"report.html" in content
    assert b"SRE-CLIP/test_h_mean" in content


def test_a_configuration_is_written_once_while_the_search_runs_and_after_a_resume(tmp_path: Path) -> None:
    done = DONE[:1]
    ledger: Any = SimpleNamespace(folder=tmp_path, finished=lambda: done)
    log = trackers.SearchLog("tensorboard", ledger, study="s", console=Console())
    assert log.look({}) and not log.look({})
    done = DONE
    log.end()  # an interrupt leaves no time
    assert trackers.SearchLog("tensorboard", ledger, study="s", console=Console()).write() == 1
    assert sorted(file.parent.name for file in tmp_path.glob("tensorboard/*/events*")) == ["sre-0000", "sre-0001"]


def test_a_tracker_that_is_away_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise ConnectionError("connection refused")

    said = io.StringIO()
    console = Console(file=said, width=200)
    ledger: Any = SimpleNamespace(folder=tmp_path, finished=lambda: DONE)
    monkeypatch.setattr(trackers, "_wandb", away)
    log = trackers.SearchLog("wandb", ledger, study="s", console=console)
    assert not log.look({})  # a service is not asked while the search runs
    assert log.write() == log.write() == 2  # what was not written is tried again
    assert said.getvalue().splitlines() == ["wandb was not written: ConnectionError: connection refused"] * 2


def test_a_study_has_its_curves_and_its_result(ray_cluster: None, pva_study: Path) -> None:
    def runs(folder: Path) -> list[str]:
        return sorted(path.name for path in (folder / "tensorboard").iterdir())

    assert runs(pva_study) == ["leaderboard", *(f"pva-{i:04d}" for i in range(4))]
    assert runs(pva_study / "baselines/linear-probe") == [f"linear-probe-{i:04d}" for i in range(4)]
    (file,) = (pva_study / "tensorboard/leaderboard").iterdir()
    ((tag, _, h),) = scalars_of(file, ("test_h_mean/PVA",))
    table = pd.read_parquet(pva_study / "leaderboard.parquet")
    assert h == pytest.approx(table[(table.method == "PVA") & table.selected].test_h_mean.item())


def test_a_tracker_that_is_not_installed_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"log must be a tracker .* got mlflow: pip install -e '\.\[mlflow\]'"):
        trackers.check_tracker("mlflow")
