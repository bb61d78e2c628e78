"""A search space and a training of milliseconds, in place of a real method."""

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from search_spaces import Knob, Space
from study.evaluation.leaderboard import Row, Score, score_columns
from study.protocol.trial_data import TrialData
from study.search.records import Configuration, StudyIdentity
from study.training.loop import Judge, OnEpoch, TrainingOptions
from study.training.pack_checkpoint import PackCheckpoint
from study.training.scoring import LaneResult

SPACE = Space(
    name="toy",
    method="Toy",
    config=dict,
    benchmark="icons2emoji",
    criterion="h",
    knobs=(
        Knob(name="layers", scope="static", default=1, choices=(0, 1, 2), why="changes shapes"),
        Knob(
            name="width",
            scope="static",
            default=8,
            low=4,
            high=64,
            log=True,
            why="conditional",
            when=("layers", (1, 2)),
        ),
        Knob(name="lr", scope="lane", default=0.01, low=1e-4, high=1.0, log=True, why="optimum at 0.1"),
        Knob(name="x", scope="lane", default=0.5, low=0.0, high=1.0, why="above 0.97 the loss is NaN"),
    ),
)
EPOCHS, RUNGS = 4, (1, 2)
OPTIONS = TrainingOptions(epochs=EPOCHS, rungs=RUNGS)

IDENTITY = StudyIdentity(
    space="toy",
    benchmark="toy",
    clip="toy",
    rotation=0,
    templates=(),
    epochs=EPOCHS,
    seed=0,
    objective="h",
    select="pseudo-unseen",
    folds=3,
    ledger=None,
)
"""Of any search in tests: who resumes one must give the same."""


def trial_data() -> TrialData:
    """Data of the right type; `Training` does not look at it."""
    return TrialData(
        source_features_ID=torch.eye(4),
        source_labels_I=torch.arange(4),
        held_out_I=torch.zeros(4, dtype=torch.bool),
        target_features_TD=torch.eye(4),
        seen_C=torch.ones(4, dtype=torch.bool),
        fold_C=torch.arange(4) % 2,
        name_features_CD=torch.eye(4),
        node_features_ND=torch.eye(4),
        class_node_C=torch.arange(4),
        edges_E2=torch.zeros(0, 2, dtype=torch.int64),
        logit_scale=100.0,
        fingerprint="toy",
    )


def lane_result(params: dict[str, Any], seed: int, epoch: int = EPOCHS) -> LaneResult:
    """What `Training` makes of a configuration that it has trained for `epoch` epochs."""
    if params["x"] > 0.97:
        return LaneResult(state="failed", error="loss was not finite by epoch 1", epochs=1, train_seconds=0.1)

    def score(e: int) -> float:
        return round(1 - (math.log10(params["lr"]) + 1) ** 2 / 9 - abs(params["x"] - 0.4) / e - seed % 7 * 1e-4, 6)

    seen, unseen = params["x"], 1 - params["x"] ** 2
    return LaneResult(
        score=score(epoch),
        metrics={"val_h_mean": score(epoch), "val_h_std": 0.0, "val_seen": seen, "val_unseen": unseen},
        curve=[(e, score(e)) for e in sorted({*RUNGS, EPOCHS}) if e <= epoch],
        epochs=epoch,
        train_seconds=0.1 * epoch,
    )


class Training:
    """`training.loop.Training` in milliseconds: an epoch sleeps and looks up what `lane_result` makes of it.

    `seconds`: of a pack, those of the search's first pack `seconds_of_first`.
    Kills its actor, or raises, where the given file exists (and removes it).
    """

    def __init__(
        self,
        configs: Sequence[dict[str, Any]],
        *,
        seeds: Sequence[int],
        data: TrialData,
        options: TrainingOptions,
        judge: Judge | None = None,
        on_epoch: OnEpoch | None = None,
        checkpoint: PackCheckpoint | None = None,
        seconds: float = 0.0,
        seconds_of_first: float = 0.0,
        threads: int = 1,
        die_once: Path | None = None,
        fail_once: Path | None = None,
    ) -> None:
        assert not data.source_features_ID.requires_grad and torch.get_num_threads() == threads
        assert len({(c["layers"], c.get("width")) for c in configs}) == 1, "lanes must share their static knobs"
        self.options, self.judge, self.on_epoch = options, judge, on_epoch
        of_first = seconds_of_first if configs[0] == SPACE.defaults() else 0.0
        self.seconds, self.die_once, self.fail_once = max(seconds, of_first), die_once, fail_once
        self.lanes = list(zip(configs, seeds, strict=True))
        self.epochs = dict.fromkeys(range(len(configs)), 0)  # of those alive

    @property
    def done(self) -> bool:
        return not self.epochs

    def add(self, configs: Sequence[dict[str, Any]], seeds: Sequence[int]) -> None:
        self.epochs |= dict.fromkeys(range(len(self.lanes), len(self.lanes) + len(configs)), 0)
        self.lanes += zip(configs, seeds, strict=True)

    def advance(self) -> dict[int, LaneResult]:
        time.sleep(self.seconds / self.options.epochs)
        self.epochs = {i: epoch + 1 for i, epoch in self.epochs.items()}
        if self.fail_once and self.fail_once.exists():
            self.fail_once.unlink()
            raise RuntimeError("out of luck [/tcp/pair.cc:553]")  # brackets, as C++ libraries write them
        if self.die_once and self.die_once.exists() and EPOCHS in self.epochs.values():
            self.die_once.unlink()
            os.kill(os.getpid(), 9)
        results = {i: lane_result(*self.lanes[i], epoch) for i, epoch in self.epochs.items()}
        for rung in set(self.options.rungs) if self.judge else ():
            at_rung = [i for i, epoch in self.epochs.items() if epoch == rung and results[i].state != "failed"]
            scores = [(i, results[i].curve[-1][1]) for i in at_rung]
            for i, goes_on in zip(at_rung, self.judge(rung, scores) if scores else (), strict=True):
                if not goes_on:
                    results[i].state = "pruned"
        ended = {i: r for i, r in results.items() if r.state != "complete" or r.epochs == self.options.epochs}
        going_on = sum(r.state == "complete" for r in results.values())
        if self.on_epoch and going_on:
            self.on_epoch(max(self.epochs.values()), going_on)
        self.epochs = {i: epoch for i, epoch in self.epochs.items() if i not in ended}
        return ended


def register() -> None:
    """Ray's workers cannot import this module: it travels by value."""
    import toy

    ray.cloudpickle.register_pickle_by_value(toy)


def row(c: Configuration) -> Row:
    """A row of a leaderboard, of a search that has nothing to test on."""
    return Row(
        method="Toy",
        config_id=c.config_id,
        select="pseudo-unseen",
        benchmark="toy",
        clip="toy",
        feature_fingerprint="",
        **score_columns(None if c.score is None else Score(criterion="mi", value=c.score)),
        test_h_mean=c.metrics["val_h_mean"],
        params=json.dumps(c.params),
    )
