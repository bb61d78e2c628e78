"""Write a study into TensorBoard, MLflow or Weights & Biases: a run for each configuration, and one for the result.

Files of TensorBoard grow while the search runs. The others are services: they are asked when a search has ended, so
one that is slow costs the search nothing, and one that is away costs a line.
"""

import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from data_prep.errors import UserError
from data_prep.storage import Storage, reason
from study.evaluation.leaderboard import Row
from study.evaluation.leaderboard_text import to_markdown
from study.outputs.folder import local_files
from study.search.ledger import Ledger
from study.search.records import Configuration

Tracker = Literal["tensorboard", "mlflow", "wandb"]

LOOK_EVERY_S = 10.0
"""Seconds between two looks at a running search."""

PACKAGE: dict[Tracker, str] = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""Package that each tracker's runs are written with."""


def check_tracker(tracker: Tracker) -> None:
    """Raise `UserError` if the tracker's package is not installed."""
    if importlib.util.find_spec(PACKAGE[tracker]) is None:
        raise UserError(
            f"must be a tracker whose package is installed, got {tracker}: pip install -e '.[{tracker}]'",
            option="log",
        )


class SearchLog:
    """Writes the finished configurations of a search as runs of a tracker, each once, also over a resumed study.

    It may look at the search while it runs (an observer of its monitor): TensorBoard shows its curves live.
    """

    every_s = LOOK_EVERY_S

    def __init__(self, tracker: Tracker, ledger: Ledger, *, study: str, console: Console) -> None:
        """`study`: experiment (MLflow) or group (Weights & Biases).

        Files lie in the ledger's folder, unless MLFLOW_TRACKING_URI or WANDB_DIR names another place. Runs of Weights &
        Biases go to the project of WANDB_PROJECT, zerosweep by default, and the entity of WANDB_ENTITY.
        """
        self._tracker, self._ledger, self._study, self._console = tracker, ledger, study, console
        self._written = ledger.folder / f"runs-{tracker}.txt"

    def look(self, packs: object) -> bool:
        """Write the new configurations, if the tracker is a folder of files; return whether there were any."""
        return self._tracker == "tensorboard" and self.write() > 0

    def end(self) -> None:
        """Write nothing: a service may take its time, and an interrupted search has none."""

    def write(self) -> int:
        """Write the configurations that have no run yet; return how many there were."""
        have = set(self._written.read_text().split()) if self._written.exists() else set()
        new = [c for c in self._ledger.finished() if c.config_id not in have]
        if new:
            with _failure_is_a_line(self._tracker, self._console):
                log_configurations(self._tracker, new, study=self._study, folder=self._ledger.folder)
                with self._written.open("a") as file:
                    file.writelines(f"{c.config_id}\n" for c in new)
        return len(new)


def log_result(
    tracker: Tracker,
    storage: Storage,
    adapter: Storage,
    rows: Sequence[Row],
    *,
    study: str,
    folder: Path,
    console: Console,
) -> None:
    """Write the study's result as one run: the leaderboard, test metrics of the selected row, files and its adapter.

    `storage`: folder of the study; `adapter`: that of its selected adapter; `folder`: as for the search.
    """
    writers = {"tensorboard": _tensorboard_result, "mlflow": _mlflow_result, "wandb": _wandb_result}
    with (
        _failure_is_a_line(tracker, console),
        local_files(storage, RESULT) as files,
        local_files(adapter) as weights,
    ):
        writers[tracker](rows, files, weights, study, folder)


RESULT = ("leaderboard.csv", "leaderboard.md", "leaderboard.parquet", "report.html", "run.json")
"""Files of a study that go with its result."""


@contextmanager
def _failure_is_a_line(tracker: Tracker, console: Console) -> Iterator[None]:
    """Print the error of a tracker that is away: the study does not depend on it."""
    try:
        yield
    except Exception as error:
        text = f"{tracker} was not written: {type(error).__name__}: {reason(error)}"
        console.print(text, soft_wrap=True, markup=False)


def _measured(row: Row) -> dict[str, float]:
    """Return the numbers of a row."""
    return {name: value for name, value in vars(row).items() if isinstance(value, float) and math.isfinite(value)}


def log_configurations(tracker: Tracker, configurations: Sequence[Configuration], *, study: str, folder: Path) -> None:
    """Write one run per configuration: parameters, selection metrics, learning curve and state. See `SearchLog`."""
    writers: dict[Tracker, Callable[[Sequence[Configuration], str, Path], None]] = {
        "tensorboard": _tensorboard,
        "mlflow": _mlflow,
        "wandb": _wandb,
    }
    writers[tracker](configurations, study, folder)


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def _tensorboard(configurations: Sequence[Configuration], study: str, folder: Path) -> None:
    from tensorboardX import SummaryWriter

    for c in configurations:
        with SummaryWriter(str(folder / "tensorboard" / c.config_id)) as run:
            for epoch, score in c.curve:
                run.add_scalar("score", score, epoch)
            for name, value in c.metrics.items():
                if math.isfinite(value):  # a swept knob may be infinite
                    run.add_scalar(name, value, c.epochs)
            measured = {f"final/{name}": value for name, value in c.metrics.items() if math.isfinite(value)}
            if c.score is not None:  # TensorBoard's HPARAMS tab
                measured["final/score"] = c.score
                run.add_hparams(dict(c.params), measured, name="hparams", global_step=c.epochs)
            run.add_text("configuration", "\n".join(f"{k} = {v}  " for k, v in {**c.params, "state": c.state}.items()))


def _tensorboard_result(rows: Sequence[Row], files: Path, adapter: Path, study: str, folder: Path) -> None:
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard" / "leaderboard")) as run:
        run.add_text("leaderboard", to_markdown(rows))
        for row in rows:
            if row.selected and row.test_h_mean is not None:
                run.add_scalar(f"test_h_mean/{row.method}", row.test_h_mean)


# --- MLflow -----------------------------------------------------------------------------------------------------------


def _to_mlflow(study: str, folder: Path) -> None:
    """Write into this experiment from here on."""
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{folder.resolve()}/mlflow.db")
    mlflow.set_experiment(study)


def _mlflow(configurations: Sequence[Configuration], study: str, folder: Path) -> None:
    import mlflow

    _to_mlflow(study, folder)
    for c in configurations:
        with mlflow.start_run(run_name=c.config_id):
            mlflow.log_params(c.params)
            mlflow.set_tags({"state": c.state, "seed": c.seed, **({"reason": c.reason} if c.reason else {})})
            for epoch, score in c.curve:
                mlflow.log_metric("score", score, step=epoch)
            mlflow.log_metrics(c.metrics, step=c.epochs)


def _mlflow_result(rows: Sequence[Row], files: Path, adapter: Path, study: str, folder: Path) -> None:
    import mlflow

    _to_mlflow(study, folder)
    with mlflow.start_run(run_name="leaderboard"):
        for row in rows:
            if row.selected:
                mlflow.log_metrics({f"{_plain(row.method)}/{name}": value for name, value in _measured(row).items()})
        mlflow.log_artifacts(str(files))
        mlflow.log_artifacts(str(adapter), artifact_path="adapter")


def _plain(name: str) -> str:
    """Return a name without what MLflow forbids in those of metrics."""
    return re.sub(r"[^\w\-. /]", "", name)


# --- Weights & Biases -------------------------------------------------------------------------------------------------


def _wandb_run(name: str, study: str, folder: Path, config: Mapping[str, Any]) -> Any:
    """Begin a run of the study's group."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "zerosweep"),
        group=study,
        name=name,
        config=dict(config),
        dir=os.environ.get("WANDB_DIR", str(folder)),
        reinit="finish_previous",
    )


def _wandb(configurations: Sequence[Configuration], study: str, folder: Path) -> None:
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    directory = os.environ.get("WANDB_DIR", str(folder))
    for c in configurations:
        config = {**c.params, "seed": c.seed}
        project = os.environ.get("WANDB_PROJECT", "zerosweep")
        with wandb.init(
            project=project, group=study, name=c.config_id, config=config, dir=directory, reinit="finish_previous"
        ) as run:
            for epoch, score in c.curve:
                run.log({"score": score}, step=epoch)
            run.summary.update({**c.metrics, "state": c.state})


def _wandb_result(rows: Sequence[Row], files: Path, adapter: Path, study: str, folder: Path) -> None:
    import wandb

    with _wandb_run("leaderboard", study, folder, {}) as run:
        shown = ["rank", "method", "config_id", "selected", "test_seen_mean", "test_unseen_mean"]
        shown += ["test_h_mean", "h_gain"]
        cells = [[getattr(row, name) for name in shown] for row in rows]
        run.log({"leaderboard": wandb.Table(columns=shown, data=cells)})
        for row in rows:
            if row.selected:
                run.summary.update({f"{row.method}/{name}": value for name, value in _measured(row).items()})
        for name, kind, contents in (("study", "result", files), ("adapter", "model", adapter)):
            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"{study}-{name}"), type=kind)
            artifact.add_dir(str(contents))
            run.log_artifact(artifact)
