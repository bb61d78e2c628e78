"""A search space and a train function of milliseconds, in place of a real method."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from search_spaces import Knob, Space
from study.evaluation.leaderboard import Row
from study.protocol.trial_data import TrialData
from study.search.records import Configuration
from study.training.lane_result import LaneResult

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


def trial_data() -> TrialData:
    """Data of the right type; `train` does not look at it."""
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
    """What `train` makes of a configuration that it trains for so many epochs."""
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


def train(
    configs: Sequence[dict[str, Any]],
    *,
    seeds: Sequence[int],
    data: TrialData,
    epochs: int,
    rungs: Sequence[int],
    judge: Callable[[int, list[tuple[int, float]]], list[bool]] | None,
    on_epoch: Callable[[int, int], None],
    checkpoints: None = None,
    seconds: float = 0.0,
    threads: int = 1,
    die_once: Path | None = None,
    fail_once: Path | None = None,
) -> Iterator[dict[int, LaneResult]]:
    """Same interface as `train_lanes`, all at the end.

    Kills its actor, or raises, where the given file exists (and removes it).
    """
    assert not data.source_features_ID.requires_grad and torch.get_num_threads() == threads
    assert len({(c["layers"], c.get("width")) for c in configs}) == 1, "lanes must share their static knobs"
    results: dict[int, LaneResult] = {}
    alive = list(range(len(configs)))
    for epoch in range(1, epochs + 1):
        time.sleep(seconds / epochs)
        if fail_once and fail_once.exists():
            fail_once.unlink()
            raise RuntimeError("out of luck [/tcp/pair.cc:553]")  # brackets, as C++ libraries write them
        if die_once and die_once.exists() and epoch == EPOCHS:
            die_once.unlink()
            os.kill(os.getpid(), 9)
        for i in alive:
            results[i] = lane_result(configs[i], seeds[i], epoch)
        alive = [i for i in alive if results[i].state != "failed"]
        if judge and epoch in rungs and alive:
            keep = judge(epoch, [(i, results[i].curve[-1][1]) for i in alive])
            for i, goes_on in zip(alive, keep, strict=True):
                if not goes_on:
                    results[i].state = "pruned"
            alive = [i for i, goes_on in zip(alive, keep, strict=True) if goes_on]
        on_epoch(epoch, len(alive))
        if not alive:
            break
    yield results


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
        val_score=c.score,
        test_h_mean=c.metrics["val_h_mean"],
        params=json.dumps(c.params),
    )
