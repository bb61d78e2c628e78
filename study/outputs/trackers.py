"""Write finished configurations as runs of TensorBoard, MLflow or Weights & Biases, each with its learning curve.

The runs are written from the ledger when a search ends, so a tracker that is slow or away costs the search nothing.
"""

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from data_prep.errors import UserError
from study.search.records import Configuration

Tracker = Literal["tensorboard", "mlflow", "wandb"]

PACKAGE: dict[Tracker, str] = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""Package that each tracker's runs are written with."""


def check_tracker(tracker: Tracker) -> None:
    """Raise `UserError` if the tracker's package is not installed."""
    if importlib.util.find_spec(PACKAGE[tracker]) is None:
        raise UserError(
            f"must be a tracker whose package is installed, got {tracker}: pip install 'zerosweep[{tracker}]'",
            option="log",
        )


def log_configurations(tracker: Tracker, configurations: Sequence[Configuration], *, study: str, folder: Path) -> None:
    """Write one run per configuration: parameters, selection metrics, learning curve and state.

    `study`: experiment (MLflow) or group (Weights & Biases, in the project of WANDB_PROJECT, zerosweep by default, and
    the entity of WANDB_ENTITY). `folder`: folder for the files, unless MLFLOW_TRACKING_URI or WANDB_DIR names another.
    """
    writers: dict[Tracker, Callable[[Sequence[Configuration], str, Path], None]] = {
        "tensorboard": _tensorboard,
        "mlflow": _mlflow,
        "wandb": _wandb,
    }
    writers[tracker](configurations, study, folder)


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


def _mlflow(configurations: Sequence[Configuration], study: str, folder: Path) -> None:
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{folder.resolve()}/mlflow.db")
    mlflow.set_experiment(study)
    for c in configurations:
        with mlflow.start_run(run_name=c.config_id):
            mlflow.log_params(c.params)
            mlflow.set_tags({"state": c.state, "seed": c.seed, **({"reason": c.reason} if c.reason else {})})
            for epoch, score in c.curve:
                mlflow.log_metric("score", score, step=epoch)
            mlflow.log_metrics(c.metrics, step=c.epochs)


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
