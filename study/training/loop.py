"""Train configurations that share their static knobs, epoch by epoch. No Ray in here.

While configurations are selected every configuration trains once per fold, and all its folds are lanes of the same
pack; a refit (see `refit.py`) trains one lane per configuration and seed on all seen classes.

Suffixes: K lanes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from models.data_parallel import workers
from models.stacked import MethodConfig
from study.protocol.scores import Criterion
from study.protocol.trial_data import TrialData
from study.training.pack import Pack, Precision, folds_of, pack_on_folds
from study.training.pack_checkpoint import PackCheckpoint
from study.training.scoring import LaneResult, score_lanes

Judge = Callable[[int, list[tuple[int, float]]], list[bool]]
"""(epoch, [(configuration's index, score)]) -> whether each goes on."""

OnEpoch = Callable[[int, int], None]
"""Hears (epochs of the oldest configuration, configurations still alive) after every epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How all configurations of a search are trained and scored."""

    epochs: int
    """Epochs of a configuration that is not pruned."""
    rungs: tuple[int, ...] = ()
    """Epochs after which configurations are scored and judged; they are scored after the last epoch anyway."""
    criterion: Criterion = "h"
    """What scores them."""
    precision: Precision = "float32"
    """Of matrix products."""
    cuda_graphs: bool = False
    """Whether a GPU replays steps."""


class PackRun:
    """One pack in training: each call of `advance` trains an epoch."""

    def __init__(
        self,
        configs: Sequence[MethodConfig],
        *,
        seeds: Sequence[int],
        data: TrialData,
        options: TrainingOptions,
        judge: Judge | None = None,
        on_epoch: OnEpoch | None = None,
        checkpoint: PackCheckpoint | None = None,
    ) -> None:
        """Build the pack and, where its `checkpoint` is there, go on from it."""
        self.data, self.options = data, options
        self._judge, self._on_epoch, self._checkpoint = judge, on_epoch, checkpoint
        self._folds = folds_of(data)
        self.pack = self._build(configs, seeds)
        self.results = [LaneResult() for _ in configs]
        self.alive = list(range(len(configs)))
        self._ended_before: dict[int, LaneResult] = {}
        if checkpoint and (saved := checkpoint.load()):
            self._restore(*saved)

    def _restore(self, state: Mapping[str, torch.Tensor], results: list[LaneResult]) -> None:
        """Go on from a checkpoint, with the same results to the bit."""
        self.results = results
        self._ended_before = {i: r for i, r in enumerate(results) if r.state != "complete"}
        self.alive = [i for i in self.alive if i not in self._ended_before]
        self.pack.keep([k for k, (i, _) in enumerate(self._lanes(range(len(results)))) if i in self.alive])
        self.pack.restore(state)
        # a judge may be new, as after the driver's death: it hears the scores of lanes whose verdicts stand
        for epoch in self.options.rungs if self._judge else ():
            scores = [(i, score) for i, r in enumerate(results) for at, score in r.curve if at == epoch]
            if self._judge and scores:
                self._judge(epoch, scores)

    def _build(self, configs: Sequence[MethodConfig], seeds: Sequence[int]) -> Pack:
        options = self.options
        return pack_on_folds(
            configs,
            seeds=seeds,
            data=self.data,
            epochs=options.epochs,
            precision=options.precision,
            cuda_graphs=options.cuda_graphs,
        )

    def _lanes(self, indices: Sequence[int]) -> list[tuple[int, int | None]]:
        """Return (configuration, fold) of each lane."""
        return [(i, fold) for i in indices for fold in self._folds]

    def add(self, configs: Sequence[MethodConfig], seeds: Sequence[int]) -> None:
        """Train more configurations, each from its own first epoch; they take the next indices."""
        joining = self._build(configs, seeds)
        if self.alive:
            self.pack.join(joining)
        else:
            self.pack = joining
        self.alive += range(len(self.results), len(self.results) + len(configs))
        self.results += [LaneResult() for _ in configs]

    def advance(self) -> dict[int, LaneResult]:
        """Train an epoch; return the results of the configurations that have ended with it, by index.

        After a restored checkpoint the first call trains nothing and returns those that had ended before it.
        Raises `Moving` where the pack must leave its node.
        """
        if self._ended_before:
            ended, self._ended_before = self._ended_before, {}
            return ended
        options, started = self.options, time.perf_counter()
        lanes, alive = self._lanes(self.alive), {i: self.results[i] for i in self.alive}
        self.pack.train_epoch()
        for result in alive.values():
            result.epochs += 1
        due = {i: r for i, r in alive.items() if r.epochs in options.rungs or r.epochs == options.epochs}
        if due:
            score_lanes(self.pack, lanes, self.data, options.criterion, due, options.epochs)
        seconds = (time.perf_counter() - started) / len(alive)
        for result in alive.values():
            result.train_seconds += seconds
        if self._judge:
            self._prune(due, self._judge)
        ended = {i: r for i, r in due.items() if r.state != "complete" or r.epochs == options.epochs}
        going_on = sum(r.state == "complete" for r in alive.values())
        if self._on_epoch and going_on:
            self._on_epoch(max(r.epochs for r in alive.values()), going_on)
        self.alive = [i for i in alive if i not in ended]
        if self.alive and ended:
            self.pack.keep([k for k, (i, _) in enumerate(lanes) if i not in ended])
        if self.alive and self._checkpoint:
            self._checkpoint.save(self.pack, self.results)
        return ended

    def _prune(self, due: Mapping[int, LaneResult], judge: Judge) -> None:
        """Ask which configurations go on, among those that stand at the same rung."""
        for epoch in sorted({r.epochs for r in due.values()} - {self.options.epochs}):
            scores = [(i, r.curve[-1][1]) for i, r in due.items() if r.epochs == epoch and r.state != "failed"]
            for (i, _), goes_on in zip(scores, judge(epoch, scores) if scores else [], strict=True):
                if not goes_on:
                    due[i].state = "pruned"


class Training:
    """Configurations in training: one pack, or, where memory does not suffice, parts of it one after the other.

    At its epochs in `rungs`, `judge` hears the scores of the configurations still alive and says which go on.
    Only `data` is looked at: its held-out and pseudo-unseen source images and its unlabelled target images.
    With a `checkpoint` a pack that was cut off goes on from its last one; only for packs that none joins.
    Where memory does not suffice, the configurations not yet ended start again, one half after the other and without
    checkpoints.
    """

    def __init__(
        self,
        configs: Sequence[MethodConfig],
        *,
        seeds: Sequence[int],
        data: TrialData,
        options: TrainingOptions,
        judge: Judge | None = None,
        on_epoch: OnEpoch | None = None,
        checkpoint: PackCheckpoint | None = None,
    ) -> None:
        self.data, self.options = data, options
        self._judge, self._on_epoch, self._checkpoint = judge, on_epoch, checkpoint
        self._requested = list(zip(configs, seeds, strict=True))
        self._waiting = [list(range(len(self._requested)))]  # parts, by the configurations' indices
        self._run: PackRun | None = None
        self._indices: list[int] = []  # of the run's configurations, in the run's order
        self._alive: list[int] = []  # those that have not ended
        self._joining: list[int] = []  # those that the run does not have yet

    @property
    def done(self) -> bool:
        """Whether all configurations have ended."""
        return not self._waiting and not self._alive

    def add(self, configs: Sequence[MethodConfig], seeds: Sequence[int]) -> None:
        """Train more configurations in the room of ended ones, beside those in training; they take the next indices."""
        new = range(len(self._requested), len(self._requested) + len(configs))
        self._requested += zip(configs, seeds, strict=True)
        self._alive += new
        self._joining += new

    def advance(self) -> dict[int, LaneResult]:
        """Train an epoch; return the results of the configurations that have ended with it, by index (maybe none).

        Raises `Moving`, and whatever training raises.
        """
        try:
            return self._advance()
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or len(self._alive) < 2 or workers()[1] > 1:  # the others would not know
                raise
            half = (len(self._alive) + 1) // 2
            self._waiting[:0] = [self._alive[:half], self._alive[half:]]
            print(f"out of memory with {len(self._alive)} configurations, going on with {half}: {error}", flush=True)
        self._run, self._alive, self._joining, self._checkpoint = None, [], [], None
        _empty_cache()
        return {}

    def _advance(self) -> dict[int, LaneResult]:
        if not self._alive:
            self._run = None
            _empty_cache()
            self._alive = self._waiting.pop(0)
        if self._run is None:
            self._indices, self._joining = list(self._alive), []
            configs, seeds = zip(*(self._requested[i] for i in self._indices), strict=True)
            self._run = PackRun(
                configs,
                seeds=seeds,
                data=self.data,
                options=self.options,
                judge=self._judge and self._judge_run,
                on_epoch=self._on_epoch,
                checkpoint=self._checkpoint,
            )
        if self._joining:
            configs, seeds = zip(*(self._requested[i] for i in self._joining), strict=True)
            self._run.add(configs, seeds)
            self._indices, self._joining = self._indices + self._joining, []
        ended = {self._indices[i]: result for i, result in self._run.advance().items()}
        self._alive = [i for i in self._alive if i not in ended]
        return ended

    def _judge_run(self, epoch: int, scores: list[tuple[int, float]]) -> list[bool]:
        """Ask the judge with the indices that it knows."""
        assert self._judge is not None  # or nobody asks
        return self._judge(epoch, [(self._indices[i], score) for i, score in scores])


def _empty_cache() -> None:
    """Give the memory of a pack that is gone back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out: CUDA's error has a type of its own, the CPU's allocator raises a RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)


def train_pack(
    configs: Sequence[MethodConfig],
    *,
    seeds: Sequence[int],
    data: TrialData,
    options: TrainingOptions,
    judge: Judge | None = None,
    on_epoch: OnEpoch | None = None,
) -> list[LaneResult]:
    """Train and score configurations that share their static knobs, to their end; return their results in order."""
    training = Training(configs, seeds=seeds, data=data, options=options, judge=judge, on_epoch=on_epoch)
    results: dict[int, LaneResult] = {}
    while not training.done:
        results |= training.advance()
    return [results[i] for i in range(len(configs))]
