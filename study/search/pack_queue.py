"""Which configurations does the next pack train? A *pack* is K configurations that share their static knobs.

Configurations pK to pK + K - 1 are a group with common static knobs, and all draws for configuration i come from a
generator seeded with (study seed, i). So a study that was interrupted goes on with the groups and draws it would have
had, and its configurations train with the seeds they would have had.

With `refill` a group is what one pack trains in its life: K configurations and, in the room of those that end, up to
as many again.
"""

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from optuna.samplers import BaseSampler, NSGAIISampler, PartialFixedSampler, RandomSampler, TPESampler

from data_prep.errors import UserError
from search_spaces import Space, Value
from study.search.ledger import Ledger
from study.search.records import Configuration, Lane, PackReport, SamplerName, State
from study.search.votes import VoteFolder

RETRIES = 2
"""Times that a configuration is trained again after packs died with it, before it counts as failed."""


@dataclass(kw_only=True)
class Counts:
    """How a search stands; configurations count once, however often they had to be trained."""

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
    """Packs begun in this run."""
    empty_lanes: int = 0
    """Lanes of those packs that had no configuration."""
    deaths: int = 0
    """Packs that died in this run."""
    last_death: str = ""
    """Why the last of them died."""

    @property
    def finished(self) -> int:
        """Configurations that are finished, whatever became of them."""
        return self.complete + self.pruned + self.failed

    def add(
        self,
        state: State,
        score: float | None = None,
        h: float | None = None,
        params: Mapping[str, Value] | None = None,
    ) -> None:
        """Count one finished configuration."""
        self.complete += state == "complete"
        self.pruned += state == "pruned"
        self.failed += state == "failed"
        if state == "complete" and score is not None and (self.best is None or score > self.best):
            self.best, self.best_h, self.best_params = score, h, dict(params or {})


def derive_seed(seed: int, index: int, purpose: str) -> int:
    """Return a 32-bit seed for configuration `index`, unrelated to those of its neighbours."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}/{purpose}".encode()).digest()[:4], "big")


def make_sampler(name: SamplerName, seed: int, *, startup: int = 16) -> BaseSampler:
    """Make Optuna's sampler; the first `startup` configurations are random (NSGA-II: its population)."""
    makers: dict[SamplerName, Callable[[], BaseSampler]] = {
        # group: a joint model per set of knobs that are active together, so conditional knobs are modelled as well
        "tpe": lambda: TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True
        ),
        "random": lambda: RandomSampler(seed=seed),
        "nsga2": lambda: NSGAIISampler(seed=seed, population_size=startup),
    }
    return makers[name]()


class PackQueue:
    """Fills packs from the ledger's sampler and writes into the ledger what becomes of their lanes.

    Knows nothing of where packs run: any backend may call `next_pack`, then `report` as often as it likes while the
    pack runs, then `end`. Packs may end in any order, or die. The ledger is the whole state.
    """

    def __init__(
        self,
        ledger: Ledger,
        space: Space,
        *,
        configs: int,
        pack: int,
        sampler: SamplerName = "tpe",
        seed: int = 0,
        refill: bool = False,
        votes: VoteFolder | None = None,
        enqueued: Sequence[Mapping[str, Value]] = (),
        limit_s: float = math.inf,
    ) -> None:
        """Take over the ledger's unfinished configurations.

        `configs`: how many to finish in all, those found in the ledger included; `pack`: lanes of a pack; `refill`:
        whether running packs take new configurations in the room of those that end; `votes`: where those of complete
        configurations go; `enqueued`: knobs that are tried after the defaults, each the first of a pack; `limit_s`:
        seconds of training, from the first pack's on, after which no configuration is begun.
        """
        self.ledger, self.space, self.configs, self.pack = ledger, space, configs, pack
        self.sampler, self.seed, self.refill, self.votes = sampler, seed, refill, votes
        self.enqueued, self.limit_s = enqueued, limit_s
        self.counts = Counts()
        self.seconds = 0.0
        """From this run's first pack to its last outcome."""
        self._began = 0.0
        self._training_since = math.inf  # known with the first result: actors take seconds to start
        self._running: dict[str, list[Lane]] = {}
        self._failure: Exception | None = None  # of the ledger, in a report or the end of a pack
        self._room: dict[str, int] = {}  # configurations that a pack may still be refilled with
        self._waiting: deque[Lane] = deque(ledger.recover())
        finished = ledger.finished()
        for configuration in finished:
            h = configuration.metrics.get("val_h_mean")
            self.counts.add(configuration.state, configuration.score, h, configuration.params)
        drawn: list[Configuration | Lane] = [*finished, *self._waiting]
        last = max(drawn, key=lambda c: c.index, default=None)
        self._next = last.index + 1 if last else 0
        self._static = space.static(last.params) if last else {}

    @property
    def running(self) -> int:
        """Configurations in packs that have not reported yet."""
        return sum(map(len, self._running.values()))

    @property
    def left(self) -> int:
        """Configurations still to be put into packs, none once the time is over."""
        if time.monotonic() - self._training_since > self.limit_s:
            return 0
        return max(0, self.configs - self.counts.finished - self.running)

    @property
    def over(self) -> bool:
        """Whether every configuration is finished: none is left to begin, and none runs."""
        return not self.left and not self.running

    def next_pack(self, pack_id: str) -> list[Lane]:
        """Begin a pack; empty while there is none, because others must report first or the search is over.

        Raises what the ledger raised, now or in the report of a pack before.
        """
        if self._failure:
            raise self._failure
        left = self.left
        if not left:
            return []
        self._began = self._began or time.monotonic()
        static = self.space.static(self._waiting[0].params) if self._waiting else None
        lanes = self._running[pack_id] = self._fill(min(self.pack, left), left, static)
        self._room[pack_id] = self.pack  # a pack refilled for ever would keep other static knobs from their turn
        self.counts.packs += 1
        self.counts.empty_lanes += self.pack - len(lanes)
        return list(lanes)

    def report(self, pack_id: str, report: PackReport) -> list[Lane]:
        """Write the lanes that a running pack reports as ended; return those that take their room, if it is refilled.

        The lanes of a pack that moves are put back into the queue, and have not died.
        """
        lanes, new = self._running.get(pack_id, []), list[Lane]()
        with self._failure_waits():
            if report.moved:
                with self.ledger.together():
                    for lane in lanes:
                        self._requeue(lane, "its node was drained", deaths=lane.deaths)
                self._running[pack_id] = []
                return []
            self._write(pack_id, report)
            if not self.refill or not lanes:
                return []
            freed, left = len(lanes) - len(self._running[pack_id]), self.left
            new = self._fill(min(freed, self._room[pack_id], left), left, self.space.static(lanes[0].params))
            self._room[pack_id] -= len(new)
            self._running[pack_id] += new
        return new

    def end(self, pack_id: str, report: PackReport | None) -> None:
        """Write a pack's last report; lanes without an outcome were in a pack that died (None: without a word)."""
        with self._failure_waits():
            if report:
                self._write(pack_id, report)
            self.seconds = time.monotonic() - self._began
            lost = self._running.pop(pack_id, [])
            self._room.pop(pack_id, None)
            reason = report.crash if report and report.crash else "its actor or node died"
            if lost:
                self.counts.deaths, self.counts.last_death = self.counts.deaths + 1, reason
            with self.ledger.together():
                for lane in lost:
                    if lane.deaths < RETRIES:
                        self._requeue(lane, f"its pack died: {reason}", deaths=lane.deaths + 1)
                    else:
                        self.ledger.fail(lane.trial_id, f"its pack died: {reason}", requeue_with=None)
                        self.counts.add("failed")

    @contextmanager
    def _failure_waits(self) -> Iterator[None]:
        """Keep the error of a ledger that cannot be written for `next_pack` to raise.

        Tune would take an error here for the pack's own, and end the pack a second time.
        """
        try:
            yield
        except (UserError, OSError) as error:
            self._failure = self._failure or error

    def interrupt(self, reason: str) -> None:
        """Void the running lanes, for a later resume to train them."""
        self._waiting = deque(self.ledger.void_running(reason))
        self._running.clear()

    def _write(self, pack_id: str, report: PackReport) -> None:
        """Write the outcomes that a pack reports; those written before are left alone."""
        lanes = self._running.get(pack_id, [])
        if report.ended and self._training_since == math.inf:
            trained = sum(outcome.train_seconds for outcome in report.ended.values())
            self._training_since = time.monotonic() - trained
        with self.ledger.together():
            for lane in lanes:
                outcome = report.ended.get(lane.number)
                if outcome and outcome.votes and self.votes:
                    self.votes.save(lane.index, outcome.votes)  # before the ledger calls it complete
                if outcome and (state := self.ledger.tell(lane, outcome)):
                    self.counts.add(state, outcome.score, outcome.metrics.get("val_h_mean"), lane.params)
        if lanes:
            self._running[pack_id] = [lane for lane in lanes if lane.number not in report.ended]

    def _requeue(self, lane: Lane, reason: str, *, deaths: int) -> None:
        self.ledger.fail(lane.trial_id, reason, requeue_with=deaths)
        self._waiting.append(replace(lane, deaths=deaths))

    def _fill(self, size: int, left: int, static: dict[str, Value] | None) -> list[Lane]:
        """Return up to `size` lanes with these static knobs (None: the next ones' own): waiting ones, then new ones.

        `left`: configurations that may still be begun.
        """
        fresh = max(0, left - len(self._waiting))
        waiting = [lane for lane in self._waiting if self.space.static(lane.params) == static]
        if not self.refill:  # a group stays together, and goes on from its checkpoint
            waiting = [lane for lane in waiting if lane.index // self.pack == waiting[0].index // self.pack]
        waiting = waiting[:size]
        for lane in waiting:
            self._waiting.remove(lane)
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
                group = static if self.refill else self._static if self._next % self.pack else None
                if static is not None and group != static:
                    break
                lanes.append(self._draw(group))
                static, fresh = self._static, fresh - 1
        return lanes

    def _draw(self, static: dict[str, Value] | None) -> Lane:
        """Draw the next configuration, with these static knobs if any are given."""
        index, sampler = self._next, self._sampler(self._next)
        if static:
            sampler = PartialFixedSampler(static, sampler)
        lane = self.ledger.ask(
            self.space,
            sampler,
            index=index,
            seed=derive_seed(self.seed, index, "train"),
            given=self._given(index),
        )
        self._next, self._static = index + 1, self.space.static(lane.params)
        return lane

    def _given(self, index: int) -> Mapping[str, Value] | None:
        """Return the knobs that are tried at an index: the defaults, then those enqueued, one at the begin of a pack.

        None where they are drawn. The others of a pack share the static knobs of its first.
        """
        if index == 0:
            return self.space.defaults()
        group, position = divmod(index, self.pack)
        return self.enqueued[group - 1] if not position and group <= len(self.enqueued) else None

    def _sampler(self, index: int) -> BaseSampler:
        return make_sampler(self.sampler, derive_seed(self.seed, index, "draw"))
