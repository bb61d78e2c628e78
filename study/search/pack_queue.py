"""The Searcher between Tune and the ledger: one suggestion is a *pack*, K configurations that share their static knobs.

A study searches several spaces, its method's and the baselines'; Tune asks for all of them in one run.

Configurations pK to pK + K - 1 are a group with common static knobs, and whatever is drawn for configuration i comes
from a generator seeded with (study seed, i). So a study that was interrupted goes on with the groups and draws it would
have had, and its configurations train with the seeds they would have had.

With `refill` a group is what one pack trains in its life: K configurations and, in the room of those that end, up to
as many again.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from optuna.samplers import BaseSampler, NSGAIISampler, PartialFixedSampler, RandomSampler, TPESampler
from ray.tune.search import Searcher

from search_spaces import Space, Value
from study.search.ledger import Ledger
from study.search.records import Configuration, Lane

SamplerName = Literal["tpe", "random", "nsga2"]

RETRIES = 2
"""A configuration under which a pack died is trained again this many times before it counts as failed."""


@dataclass(kw_only=True)
class Counts:
    """How a study stands; configurations count once, however often they had to be trained."""

    complete: int = 0
    """Trained to the end."""
    pruned: int = 0
    """Stopped at a rung."""
    failed: int = 0
    """Diverged, or their packs died once too often."""
    best: float | None = None
    """Highest score of a completed configuration."""
    best_h: float | None = None
    """That configuration's H on the selection folds."""
    best_params: dict[str, Value] = field(default_factory=dict)
    """Its parameters."""
    packs: int = 0
    """Packs asked for in this run."""
    empty_lanes: int = 0
    """Lanes of those packs that had no configuration."""
    deaths: int = 0
    """Packs that died in this run."""
    last_death: str = ""
    """Why the last of them died."""

    @property
    def finished(self) -> int:
        return self.complete + self.pruned + self.failed

    def add(
        self, state: str, score: float | None = None, h: float | None = None, params: Mapping[str, Value] | None = None
    ) -> None:
        """Count one finished configuration."""
        setattr(self, state, getattr(self, state) + 1)
        if state == "complete" and score is not None and (self.best is None or score > self.best):
            self.best, self.best_h, self.best_params = score, h, dict(params or {})


def derive_seed(seed: int, index: int, purpose: str) -> int:
    """A 32-bit seed of configuration `index`, unrelated to those of its neighbours."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}/{purpose}".encode()).digest()[:4], "big")


def make_sampler(name: SamplerName, seed: int, *, startup: int = 16) -> BaseSampler:
    """Optuna's sampler; the first `startup` configurations are random (NSGA-II: its population)."""
    makers: dict[SamplerName, Callable[[], BaseSampler]] = {
        # group: a joint model per set of knobs that are active together, so conditional knobs are modelled as well
        "tpe": lambda: TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True
        ),
        "random": lambda: RandomSampler(seed=seed),
        "nsga2": lambda: NSGAIISampler(seed=seed, population_size=startup),
    }
    return makers[name]()


class PackSearcher(Searcher):
    """Fills packs from the ledger's sampler and writes what became of their lanes into the ledger."""

    def __init__(
        self, ledger: Ledger, space: Space, *, configs: int, pack: int, sampler: SamplerName = "tpe", seed: int = 0
    ) -> None:
        """`configs`: how many to finish in all, those found in the ledger included; `pack`: lanes of a pack."""
        super().__init__()
        self.ledger, self.space, self.configs, self.pack = ledger, space, configs, pack
        self.sampler, self.seed = sampler, seed
        self.counts = Counts()
        self.give: Callable[[str, list[dict[str, Any]]], object] | None = None
        """Hands lanes to a running pack; set where freed room is to be refilled."""
        self.seconds = 0.0
        """From this run's first pack to its last result."""
        self._began = 0.0
        self._running: dict[str, list[Lane]] = {}
        self._room: dict[str, int] = {}
        self._queue: deque[Lane] = deque(ledger.recover())
        done = ledger.finished()
        for configuration in done:
            h = configuration.metrics.get("val_h_mean")
            self.counts.add(configuration.state, configuration.score, h, configuration.params)
        asked: list[Configuration | Lane] = [*done, *self._queue]
        last = max(asked, key=lambda c: c.index, default=None)
        self._next = last.index + 1 if last else 0
        self._static = space.static(last.params) if last else {}

    @property
    def running(self) -> int:
        """Configurations in packs that have not reported yet."""
        return sum(map(len, self._running.values()))

    @property
    def left(self) -> int:
        """Configurations still to be put into packs."""
        return max(0, self.configs - self.counts.finished - self.running)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a string
        """A pack; None while others must report first; FINISHED once all configurations are finished."""
        if not self.left:
            return None if self._running else Searcher.FINISHED
        self._began = self._began or time.monotonic()
        size = min(self.pack, self.left)
        static = self.space.static(self._queue[0].params) if self._queue else None
        lanes = self._running[trial_id] = self._fill(size, static)
        self._room[trial_id] = self.pack  # a pack refilled for ever would keep other static knobs from their turn
        self.counts.packs += 1
        self.counts.empty_lanes += self.pack - len(lanes)
        return {"space": self.space.name, "lanes": [_job(lane) for lane in lanes]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Write the lanes that a running pack reports as ended, and refill their room; let go of one that moves."""
        lanes = self._running.get(trial_id, [])
        if result.get("moved"):
            for lane in lanes:
                self._requeue(lane, "its node was drained", deaths=lane.deaths)
            self._running[trial_id] = []
            return
        before = len(lanes)
        self._tell(trial_id, result)
        if self.give and lanes:
            ended = before - len(self._running[trial_id])
            new = self._fill(min(ended, self._room[trial_id], self.left), self.space.static(lanes[0].params))
            self._room[trial_id] -= len(new)
            self._running[trial_id] += new
            self.give(trial_id, [_job(lane) for lane in new])

    def _tell(self, trial_id: str, result: dict[str, Any]) -> None:
        """Write the lanes a pack reports; those written before are left alone."""
        told = {r["number"]: r for r in result.get("lanes", [])}
        with self.ledger.together():
            for lane in self._running.get(trial_id, []):
                if lane.number in told:
                    of_lane = told[lane.number]
                    state = self.ledger.tell(lane, of_lane)
                    if state:
                        self.counts.add(state, of_lane["score"], of_lane["metrics"].get("val_h_mean"), lane.params)
        if told and trial_id in self._running:
            self._running[trial_id] = [x for x in self._running[trial_id] if x.number not in told]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write a pack's result; lanes without one were in a pack that died."""
        self._tell(trial_id, result or {})
        self.seconds = time.monotonic() - self._began
        lost = self._running.pop(trial_id, [])
        if lost:
            reason = (result or {}).get("crash") or "its actor or node died"
            self.counts.deaths, self.counts.last_death = self.counts.deaths + 1, reason
        with self.ledger.together():
            for lane in lost:
                if lane.deaths < RETRIES:
                    self._requeue(lane, f"its pack died: {reason}", deaths=lane.deaths + 1)
                else:
                    self.ledger.fail(lane.trial_id, f"its pack died: {reason}", requeue_with=None)
                    self.counts.add("failed")

    def interrupt(self, reason: str) -> None:
        """Void the running lanes, for a later resume to train them."""
        with self.ledger.together():
            for lanes in self._running.values():
                for lane in lanes:
                    self._requeue(lane, reason, deaths=lane.deaths)
        self._running.clear()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def _requeue(self, lane: Lane, reason: str, *, deaths: int) -> None:
        self.ledger.fail(lane.trial_id, reason, requeue_with=deaths)
        self._queue.append(replace(lane, deaths=deaths))

    def _fill(self, size: int, static: dict[str, Any] | None) -> list[Lane]:
        """Up to `size` lanes with these static knobs (None: the next ones' own): waiting ones first, then new ones."""
        fresh = max(0, self.left - len(self._queue))
        waiting = [lane for lane in self._queue if self.space.static(lane.params) == static]
        if not self.give:  # a group stays together, and goes on from its checkpoint
            waiting = [lane for lane in waiting if lane.index // self.pack == waiting[0].index // self.pack]
        waiting = waiting[:size]
        for lane in waiting:
            self._queue.remove(lane)
        with self.ledger.together():
            lanes = [
                self.ledger.ask(
                    self.space,
                    self._sampler(lane.index),
                    index=lane.index,
                    seed=lane.seed,
                    given=lane.params,
                    replaces=lane,
                )
                for lane in waiting
            ]
            while len(lanes) < size and fresh:
                # without refilling, groups are fixed by the indices: the first of a group draws its static knobs
                group = static if self.give else self._static if self._next % self.pack else None
                if static is not None and group != static:
                    break
                lanes.append(self._draw(group))
                static, fresh = self._static, fresh - 1
        return lanes

    def _draw(self, static: dict[str, Any] | None) -> Lane:
        """The next configuration, with these static knobs if any are given."""
        index, sampler = self._next, self._sampler(self._next)
        if static:
            sampler = PartialFixedSampler(static, sampler)
        lane = self.ledger.ask(
            self.space,
            sampler,
            index=index,
            seed=derive_seed(self.seed, index, "train"),
            given=self.space.defaults() if index == 0 else None,
        )
        self._next, self._static = index + 1, self.space.static(lane.params)
        return lane

    def _sampler(self, index: int) -> BaseSampler:
        return make_sampler(self.sampler, derive_seed(self.seed, index, "draw"))


def _job(lane: Lane) -> dict[str, Any]:
    """What an actor needs to know of a lane."""
    return {"number": lane.number, "index": lane.index, "params": lane.params, "seed": lane.seed}
