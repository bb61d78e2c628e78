"""Whether matrix products in bfloat16 pay: a step must be faster at a pack's own size, and the ranking must stay."""

import time
from collections.abc import Sequence
from dataclasses import replace

from models.stacked import MethodConfig
from study.protocol.scores import Criterion
from study.protocol.trial_data import TrialData
from study.training.loop import TrainingOptions, train_pack
from study.training.pack import Precision, pack_on_folds

FASTER = 1.3
"""How many times as fast a step must be: casts eat what small products gain."""

ROUNDS = 3
"""Epochs that are timed in each precision, in turn; the fastest counts."""


def why_not_bfloat16(
    configs: Sequence[MethodConfig],
    *,
    seeds: Sequence[int],
    data: TrialData,
    criterion: Criterion,
    pack: int,
    faster: float = FASTER,
) -> str:
    """Return why configurations should not be searched in bfloat16; "" where they should.

    `pack`: configurations of a pack, each with a lane for every fold.
    """
    speed_up = bfloat16_speed_up(configs[0], data=data, pack=pack)
    if speed_up < faster:
        return f"a step in bfloat16 is {speed_up:.2f} times as fast, and should be {faster:g} times"
    if not bfloat16_keeps_ranking(configs, seeds=seeds, data=data, criterion=criterion):
        return f"{len(configs)} configurations rank otherwise in bfloat16 after an epoch"
    return ""


def bfloat16_speed_up(config: MethodConfig, *, data: TrialData, pack: int) -> float:
    """Return how many times as fast an epoch of a pack is in bfloat16 as in float32."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    packs = {
        precision: pack_on_folds([config] * pack, seeds=range(pack), data=data, epochs=ROUNDS + 1, precision=precision)
        for precision in precisions
    }
    best = dict.fromkeys(precisions, float("inf"))
    for i in range(ROUNDS + 1):  # the first round also allocates
        for precision, lanes in packs.items():
            started = time.perf_counter()
            lanes.train_epoch()
            lanes.diverged_K.any().item()  # an accelerator has only been told what to do
            if i:
                best[precision] = min(best[precision], time.perf_counter() - started)
    return best["float32"] / best["bfloat16"]


def bfloat16_keeps_ranking(
    configs: Sequence[MethodConfig], *, seeds: Sequence[int], data: TrialData, criterion: Criterion = "h"
) -> bool:
    """Return whether configurations rank alike in both precisions after one epoch."""
    options = TrainingOptions(epochs=1, criterion=criterion)
    rankings = []
    for precision in ("float32", "bfloat16"):
        results = train_pack(configs, seeds=seeds, data=data, options=replace(options, precision=precision))
        scores = [result.score or 0.0 for result in results]
        rankings.append(sorted(range(len(configs)), key=scores.__getitem__))
    return rankings[0] == rankings[1]
