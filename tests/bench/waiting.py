"""What does it cost that packs wait at rungs for those drawn before them? (`--repeatable yes`)

    python tests/bench/waiting.py                            # seconds; no clock: the search is played

Plays a search with one configuration in a pack, on actors that do nothing but pass the time. The study's own
coordinator judges. Times of an epoch differ from configuration to configuration by a factor of exp(spread x a normal
number); 0.4 is what the 64 configurations of SRE-CLIP's quick start have. Printed is how many times as long the search
takes.
"""

import argparse
import heapq
import math
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from study.cluster.coordinator import Coordinator  # noqa: E402
from study.search.halving import SuccessiveHalving, rung_epochs  # noqa: E402

EPOCHS, TRIES = 20, 20
RUNGS = rung_epochs(EPOCHS)


def played(actors: int, packs: int, spread: float, *, waits: bool, seed: int) -> float:
    """Return the time at which the last of the packs ends."""
    rng = random.Random(seed)
    epoch_s = [math.exp(spread * rng.gauss(0, 1)) for _ in range(packs)]
    score = [rng.random() for _ in range(packs)]
    coordinator = Coordinator.__ray_actor_class__({"": SuccessiveHalving()})  # type: ignore[attr-defined]
    events: list[tuple[float, int, int]] = []  # when a pack has trained to an epoch: (time, pack, epoch)
    waiting: dict[int, int] = {}  # a pack's rung
    begun, last = 0, 0.0

    def begin(now: float) -> None:
        nonlocal begun
        if begun < packs:
            if waits:
                coordinator.begin("", begun)
            heapq.heappush(events, (now + RUNGS[0] * epoch_s[begun], begun, RUNGS[0]))
            begun += 1

    def end(now: float, pack: int) -> None:
        nonlocal last
        coordinator.leave("", "", pack)
        last = max(last, now)
        begin(now)

    def judge(now: float) -> bool:
        """Judge those at a rung in turn; return whether a verdict was among the answers."""
        before = len(waiting)
        for pack, rung in sorted(waiting.items()):
            verdicts = coordinator.judge("", pack, rung, {pack: score[pack]})
            if verdicts is not None:
                del waiting[pack]
                then = next((r for r in RUNGS if r > rung), EPOCHS)
                if verdicts[0]:
                    heapq.heappush(events, (now + (then - rung) * epoch_s[pack], pack, then))
                else:
                    end(now, pack)
        return len(waiting) < before

    for _ in range(actors):
        begin(0.0)
    while events:
        now, pack, epoch = heapq.heappop(events)
        if epoch == EPOCHS:
            end(now, pack)
        else:
            waiting[pack] = epoch
        while judge(now):
            pass  # what ended or came to a rung may be what others wait for
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[2, 4, 8, 16, 64])
    parser.add_argument("--packs", type=int, default=8, help="packs for each actor, 64 at least")
    parser.add_argument("--spread", type=float, default=0.4)
    options = parser.parse_args()
    print("| actors | packs | times as long |\n|--:|--:|--:|")
    for actors in options.actors:
        packs = max(64, options.packs * actors)
        together = [
            statistics.fmean(played(actors, packs, options.spread, waits=waits, seed=seed) for seed in range(TRIES))
            for waits in (True, False)
        ]
        print(f"| {actors} | {packs} | {together[0] / together[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
