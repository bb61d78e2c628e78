"""Trains a pack: K configurations side by side as stacked tensors. No Ray in here.

While configurations are selected every configuration trains once per fold, and all its folds are lanes of the same
pack; a refit trains one lane per configuration and seed on all seen classes.

Suffixes: K lanes, I source images, T target images, B batch, C classes, D CLIP dimension.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch

from models.data_parallel import workers
from study.protocol.scores import Criterion
from study.protocol.trial_data import TrialData
from study.training.lane_result import LaneResult
from study.training.pack import Pack, Precision, folds_of, pack_on_folds
from study.training.pack_checkpoint import Checkpoints
from study.training.scoring import score

Judge = Callable[[int, list[tuple[int, float]]], list[bool]]
"""(epoch, [(configuration's index in the pack, score)]) -> whether each goes on."""


def train_pack(configs: Sequence[Any], **options: Any) -> list[LaneResult]:
    """Train and score configurations that share their static knobs, to their end; `options` as in `train_lanes`."""
    results: dict[int, LaneResult] = {}
    for ended in train_lanes(configs, **options):
        results.update(ended)
    return [results[i] for i in range(len(configs))]


Training = Generator[dict[int, LaneResult], Sequence[tuple[Any, int]] | None, None]
"""Yields the results of configurations that have ended, by index; may be sent configurations with their seeds."""


def train_lanes(
    configs: Sequence[Any], *, seeds: Sequence[int], judge: Judge | None = None, **options: Any
) -> Training:
    """Train and score configurations; yields those that have ended, whenever some have, by their index.

    Every configuration trains once per fold, its folds side by side. At its epochs in `rungs`, `judge` hears the
    scores of the configurations still alive and says which go on. `on_epoch` hears (epoch, configurations alive).
    Configurations and seeds that are sent in return take the room of the ended ones, with the next indices; each
    starts from its own first epoch. Only `data` is looked at: its held-out and pseudo-unseen source images and its
    unlabelled target images. `options`: see `_train_together`.

    With `checkpoints` a pack that was cut off goes on from its last one, with the same results to the bit. Only for
    packs that no configuration joins.

    Where memory does not suffice, the configurations not yet ended start again, one half after the other and without
    checkpoints.
    """
    asked = list(zip(configs, seeds, strict=True))
    parts = [list(range(len(asked)))]
    while parts:
        alive = parts.pop(0)
        try:
            yield from _train_part(asked, alive, judge, options)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or len(alive) < 2 or workers()[1] > 1:  # the others would not know
                raise
            half = (len(alive) + 1) // 2
            parts[:0] = [alive[:half], alive[half:]]
            options = {**options, "checkpoints": None}
            print(f"out of memory with {len(alive)} configurations, going on with {half}: {error}", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _out_of_memory(error: Exception) -> bool:
    """CUDA's error has a type of its own, the CPU's allocator raises a RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)


def _train_part(
    asked: list[tuple[Any, int]], alive: list[int], judge: Judge | None, options: Mapping[str, Any]
) -> Training:
    """Train some of the configurations asked for; both lists are kept up to date as lanes end and others join."""
    indices = list(alive)
    training = _train_together(
        [asked[i][0] for i in indices],
        seeds=[asked[i][1] for i in indices],
        judge=judge and (lambda epoch, scores: judge(epoch, [(indices[i], score) for i, score in scores])),
        **options,
    )
    new: Sequence[tuple[Any, int]] | None = None
    while True:
        try:
            ended = {indices[i]: result for i, result in training.send(new).items()}
        except StopIteration:
            return
        alive[:] = [i for i in alive if i not in ended]
        new = (yield ended) or []
        indices += range(len(asked), len(asked) + len(new))
        alive += range(len(asked), len(asked) + len(new))
        asked += new


def _train_together(
    configs: Sequence[Any],
    *,
    seeds: Sequence[int],
    data: TrialData,
    epochs: int,
    criterion: Criterion = "h+mi",
    rungs: Sequence[int] = (),
    judge: Judge | None = None,
    on_epoch: Callable[[int, int], None] | None = None,
    precision: Precision = "float32",
    checkpoints: "Checkpoints | None" = None,
) -> Training:
    """`train_lanes` as one pack, whatever memory it takes."""
    folds = folds_of(data)

    def pack_of(configs: Sequence[Any], seeds: Sequence[int]) -> Pack:
        return pack_on_folds(configs, seeds=seeds, data=data, epochs=epochs, precision=precision)

    pack, count = pack_of(configs, seeds), len(configs)
    alive = {i: LaneResult() for i in range(count)}
    results = dict(alive)
    if checkpoints and (kept := checkpoints.load()):
        results = dict(enumerate(kept[1]))
        alive = {i: r for i, r in results.items() if r.state == "complete"}
        pack.keep([k for k in range(count * len(folds)) if k // len(folds) in alive])
        pack.restore(kept[0])
        _judge_again(results, rungs, judge)
        if len(alive) < count:
            yield {i: r for i, r in results.items() if i not in alive}
    while alive:
        started = time.perf_counter()
        pack.train_epoch()
        for result in alive.values():
            result.epochs += 1
        lanes = [(i, fold) for i in alive for fold in folds]
        judged = {i: result for i, result in alive.items() if result.epochs in rungs or result.epochs == epochs}
        if judged:
            score(pack, lanes, data, criterion, judged)
        seconds = (time.perf_counter() - started) / len(alive)
        for result in alive.values():
            result.train_seconds += seconds
        if judge:
            _prune(judged, epochs, judge)
        ended = {i: r for i, r in judged.items() if r.state != "complete" or r.epochs == epochs}
        going_on = sum(r.state == "complete" for r in alive.values())
        if on_epoch and going_on:
            on_epoch(max(r.epochs for r in alive.values()), going_on)
        alive = {i: r for i, r in alive.items() if i not in ended}
        if alive and ended:
            pack.keep([k for k, (i, _) in enumerate(lanes) if i in alive])
        if alive and checkpoints:
            checkpoints.save(pack, list(results.values()))
        if not ended:
            continue
        new = (yield ended) or ()
        if new:
            joining = pack_of([config for config, _ in new], [seed for _, seed in new])
            if alive:
                pack.join(joining)
            else:
                pack = joining
            alive |= {count + i: LaneResult() for i in range(len(new))}
            count += len(new)


def bfloat16_keeps_ranking(configs: Sequence[Any], *, seeds: Sequence[int], data: TrialData, **options: Any) -> bool:
    """Whether configurations rank alike in both precisions after one epoch; `options` of `train_lanes`."""
    rankings = []
    for precision in ("float32", "bfloat16"):
        results = train_pack(configs, seeds=seeds, data=data, epochs=1, precision=precision, **options)
        rankings.append(sorted(range(len(configs)), key=lambda i: results[i].score or 0.0))  # noqa: B023
    return rankings[0] == rankings[1]


def _prune(judged: Mapping[int, LaneResult], epochs: int, judge: Judge) -> None:
    """Ask who goes on, among configurations that stand at the same rung."""
    for epoch in sorted({r.epochs for r in judged.values()} - {epochs}):
        scores = [(i, r.curve[-1][1]) for i, r in judged.items() if r.epochs == epoch and r.state != "failed"]
        for (i, _), goes_on in zip(scores, judge(epoch, scores) if scores else [], strict=True):
            if not goes_on:
                judged[i].state = "pruned"


def _judge_again(results: Mapping[int, LaneResult], rungs: Sequence[int], judge: Judge | None) -> None:
    """Tell a judge who may be new, as after the driver's death, the scores of lanes whose verdicts stand."""
    for epoch in rungs if judge else ():
        scores = [(i, score) for i, r in results.items() for at, score in r.curve if at == epoch]
        if judge and scores:
            judge(epoch, scores)
