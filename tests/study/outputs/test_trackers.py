"""Finished configurations as runs of others' trackers, read back with the trackers' own readers."""

from pathlib import Path

import pytest

from data_prep.errors import UserError
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


def test_tensorboard_has_a_run_with_its_curve_for_each_configuration(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    trackers.log_configurations("tensorboard", DONE, study="s", folder=tmp_path)
    folders = sorted(p.name for p in (tmp_path / "tensorboard").iterdir())
    assert folders == ["sre-0000", "sre-0001"]
    events, hparams = sorted((tmp_path / "tensorboard" / "sre-0001").iterdir(), key=lambda path: path.is_dir())
    assert hparams.name == "hparams" and list(hparams.iterdir())  # TensorBoard's tab HPARAMS
    content, scalars = events.read_bytes(), []
    while content:  # TFRecord: length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        scalars += [
            (v.tag, event.step, v.simple_value) for v in event.summary.value if v.tag in ("score", "val_h_mean")
        ]
        content = content[16 + length :]
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


def test_wandb_writes_offline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trackers.log_configurations("wandb", DONE[:1], study="my-study", folder=tmp_path)
    (run,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"my-study" in run.read_bytes() and b"sre-0000" in run.read_bytes()


def test_a_tracker_that_is_not_installed_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"log must be a tracker .* got mlflow: pip install 'zerosweep\[mlflow\]'"):
        trackers.check_tracker("mlflow")
