"""The actor that trains packs, and the board on which all packs of a study are judged and report how far they are."""

import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray import tune

from study.protocol import RungBoard
from study.trainer import LaneResult, on_worker, train_pack

REPORT_EVERY_S = 0.2
"""Seconds between a pack's reports of its progress: an epoch of a small benchmark takes milliseconds."""


@dataclass(frozen=True, kw_only=True)
class PackProgress:
    """How far a pack is."""

    lanes: int
    """Configurations it began with."""
    alive: int
    """Configurations not pruned yet."""
    epoch: int
    """Epochs trained."""


@ray.remote(num_cpus=0)
class Board:
    """One per study: judges the lanes of all packs together and knows how far the running packs are."""

    def __init__(self, rungs: RungBoard) -> None:
        self._rungs = rungs
        self._entered: dict[tuple[int, int], float] = {}
        self._packs: dict[str, PackProgress] = {}

    def judge(self, epoch: int, scores: Mapping[int, float]) -> list[bool]:
        """For each configuration's score, whether it goes on (successive halving against all lanes so far).

        A configuration that is trained again, because its pack died, takes its old score's place.
        """
        for index, score in scores.items():
            if (epoch, index) in self._entered:
                self._rungs.scores[epoch].remove(self._entered[epoch, index])
            self._entered[epoch, index] = score
        return self._rungs.judge(epoch, list(scores.values()))

    def report(self, pack: str, progress: PackProgress | None) -> None:
        """How far a pack is; None when it is finished."""
        if progress:
            self._packs[pack] = progress
        else:
            self._packs.pop(pack, None)

    def packs(self) -> dict[str, PackProgress]:
        """Progress of the running packs."""
        return dict(self._packs)


@dataclass(frozen=True, kw_only=True)
class PackJob:
    """What all packs of a study have in common; travels to every actor once, through Ray's object store."""

    space: str
    """Name of the search space, for the dashboard."""
    config: Callable[..., Any]
    """The method's configuration class."""
    arrays: ray.ObjectRef
    """`TrialData.to_arrays()`, put once: actors map it, read-only, instead of copying it."""
    board: Any
    """Handle of the `Board`."""
    epochs: int
    """Epochs of a lane that is not pruned."""
    rungs: tuple[int, ...]
    """Epochs after which lanes are judged."""
    cpus: float
    """CPUs of an actor."""
    gpus: float
    """GPUs of an actor."""
    train: Callable[..., list[LaneResult]] = train_pack
    """`trainer.train_pack`, or a partial of it."""


class PackTrainable(tune.Trainable):
    """Trains one pack per Tune trial and is used again for the next one."""

    def setup(self, config: dict[str, Any], job: PackJob) -> None:  # type: ignore[override]
        self.job = job
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to it
        self.data = on_worker(ray.get(job.arrays), cpus=job.cpus, gpus=job.gpus)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True  # `step` reads self.config, which Tune has replaced

    def step(self) -> dict[str, Any]:
        """Train the pack to its end. An exception is a result too: the searcher decides what becomes of the lanes."""
        lanes: Sequence[Mapping[str, Any]] = self.config["lanes"]
        try:
            results = self._train(lanes)
        except Exception as error:
            traceback.print_exc()  # the whole story, for the actor's log
            return {"lanes": [], "crash": f"{type(error).__name__}: {error}", "done": True}
        finally:
            self.job.board.report.remote(self.trial_id, None)
        return {
            "lanes": [
                {"number": lane["number"], **asdict(result)} for lane, result in zip(lanes, results, strict=True)
            ],
            "done": True,
        }

    def _train(self, lanes: Sequence[Mapping[str, Any]]) -> list[LaneResult]:
        board, last_report = self.job.board, 0.0

        def judge(epoch: int, scores: list[tuple[int, float]]) -> list[bool]:
            return ray.get(board.judge.remote(epoch, {lanes[i]["index"]: score for i, score in scores}))

        def on_epoch(epoch: int, alive: int) -> None:
            nonlocal last_report
            if time.monotonic() - last_report >= REPORT_EVERY_S:
                last_report = time.monotonic()
                board.report.remote(self.trial_id, PackProgress(lanes=len(lanes), alive=alive, epoch=epoch))

        on_epoch(0, len(lanes))
        return self.job.train(
            [self.job.config(**lane["params"]) for lane in lanes],
            seeds=[lane["seed"] for lane in lanes],
            data=self.data,
            epochs=self.job.epochs,
            rungs=self.job.rungs,
            judge=judge if self.job.rungs else None,
            on_epoch=on_epoch,
        )

    def __repr__(self) -> str:
        """What the dashboard shows."""
        numbers = [lane["number"] for lane in self.config.get("lanes", [])]
        return f"pack(space={self.job.space}, lanes={len(numbers)}, first={min(numbers, default='-')})"
