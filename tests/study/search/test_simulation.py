"""The queue against a cluster that exists only here: a thousand deaths, moves and refills of lanes in a second."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import toy

from study.search.ledger import Ledger, open_ledger, read_ledger
from study.search.pack_queue import RETRIES, PackQueue
from study.search.records import Lane, PackReport

PACK = 4


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.search.journal.os.fsync", lambda fd: None)


@dataclass(kw_only=True)
class Cluster:
    """Actors that train packs at random speeds, and all that happens to them."""

    queue: PackQueue
    rng: random.Random
    death: float = 0.0
    """How probable it is that a pack dies before its next report."""
    move: float = 0.0
    """How probable it is that a pack's node is drained before its next report."""
    actors: int = 5
    """Packs that run at the same time."""
    running: dict[str, list[Lane]] = field(default_factory=dict)
    """Lanes in training, by pack."""
    moving: set[str] = field(default_factory=set)
    """Packs that have moved and are about to be given up."""
    begun: int = 0
    """Packs so far."""
    events: Counter[str] = field(default_factory=Counter)
    """What has happened, and how often."""
    deaths: Counter[int] = field(default_factory=Counter)
    """Packs that died, by configuration."""

    def run(self, steps: int | None = None) -> None:
        """Let things happen until the search is over, or so many of them."""
        while not self.queue.over and (steps is None or steps > 0):
            steps = None if steps is None else steps - 1
            self.begin()
            self.happen(self.rng.choice(list(self.running)))

    def begin(self) -> None:
        """Give every free actor a pack, if there is one."""
        while len(self.running) < self.actors and (lanes := self.queue.next_pack(f"pack-{self.begun}")):
            self.running[f"pack-{self.begun}"] = lanes
            self.begun += 1
            static = [toy.SPACE.static(lane.params) for lane in lanes]
            assert len(lanes) <= PACK and all(s == static[0] for s in static)

    def happen(self, pack: str) -> None:
        """Let one pack report, end, move or die."""
        lanes, luck = self.running[pack], self.rng.random()
        if luck < self.death or pack in self.moving:
            if pack not in self.moving:
                self.deaths.update(lane.index for lane in lanes)
                self.events["death"] += bool(lanes)
            self.moving.discard(pack)
            self.queue.end(pack, self.rng.choice([None, PackReport(crash="RuntimeError: out of luck")]))
            del self.running[pack]
        elif luck < self.death + self.move:
            self.queue.report(pack, PackReport(moved=True))
            self.moving.add(pack)
            self.running[pack] = []
            self.events["move"] += 1
        elif self.queue.refill and lanes:
            ended = self.rng.sample(lanes, self.rng.randint(1, len(lanes)))
            new = self.queue.report(pack, report(ended))
            self.running[pack] = [lane for lane in lanes if lane not in ended] + new
            self.events["refill"] += len(new)
            static = [toy.SPACE.static(lane.params) for lane in (*lanes, *new)]
            assert all(s == static[0] for s in static) and len(self.running[pack]) <= PACK
        else:
            self.queue.end(pack, report(lanes))
            del self.running[pack]


def report(lanes: list[Lane]) -> PackReport:
    return PackReport(ended={lane.number: toy.lane_result(lane.params, lane.seed) for lane in lanes})


@contextmanager
def opened(folder: Path, configs: int, *, resume: bool = False, refill: bool = False) -> Iterator[PackQueue]:
    with open_ledger(folder, space=toy.SPACE, identity=toy.IDENTITY, resume=resume) as book:
        yield PackQueue(book, toy.SPACE, configs=configs, pack=PACK, sampler="random", seed=3, refill=refill)


def drawn(book: Ledger) -> list[tuple[int, dict[str, object], int]]:
    return [(c.index, dict(c.params), c.seed) for c in book.finished()]


def undisturbed(folder: Path, configs: int) -> list[tuple[int, dict[str, object], int]]:
    with opened(folder, configs) as queue:
        Cluster(queue=queue, rng=random.Random(0), actors=1).run()
        return drawn(queue.ledger)


@pytest.mark.parametrize("refill", [False, True], ids=["packs", "refilled"])
def test_every_configuration_finishes_once_or_fails_after_its_last_death(tmp_path: Path, refill: bool) -> None:
    configs = 400
    with opened(tmp_path / "study", configs, refill=refill) as queue:
        cluster = Cluster(queue=queue, rng=random.Random(1), death=0.4, move=0.1)
        cluster.run()
        finished = queue.ledger.finished()
    assert [c.index for c in finished] == list(range(configs))
    given_up = {c.index for c in finished if c.reason.startswith("its pack died")}
    assert given_up == {i for i, deaths in cluster.deaths.items() if deaths == RETRIES + 1}
    assert max(cluster.deaths.values()) == RETRIES + 1
    assert queue.counts.deaths == cluster.events["death"] > 50 and cluster.events["move"] > 10
    assert bool(cluster.events["refill"]) == refill
    assert queue.counts.finished == configs and queue.counts.failed >= len(given_up) > 0
    # every trial either finished its configuration or was replaced by exactly one other
    trials = read_ledger(tmp_path / "study").trials()
    replaced = [t.user_attrs["retry_of"] for t in trials if "retry_of" in t.user_attrs]
    assert sorted(replaced) == [t.number for t in trials if "requeued" in t.user_attrs]
    assert len(trials) == configs + len(replaced)


@pytest.mark.parametrize("seed", range(3))
def test_draws_and_seeds_do_not_depend_on_the_order_of_deaths(tmp_path: Path, seed: int) -> None:
    expected = undisturbed(tmp_path / "undisturbed", 80)
    with opened(tmp_path / "disturbed", 80) as queue:
        Cluster(queue=queue, rng=random.Random(seed), death=0.3, move=0.1, actors=1 + 3 * seed).run()
        assert drawn(queue.ledger) == expected


@pytest.mark.parametrize("refill", [False, True], ids=["packs", "refilled"])
def test_a_search_resumed_again_and_again_loses_nothing(tmp_path: Path, refill: bool) -> None:
    """The driver dies, or is interrupted, after a few events each time."""
    rng, runs, finished = random.Random(5), 0, list[int]()
    while len(finished) < 80:
        with opened(tmp_path / "study", 80, resume=runs > 0, refill=refill) as queue:
            Cluster(queue=queue, rng=rng, death=0.1, move=0.1).run(steps=rng.randint(1, 8))
            if rng.random() < 0.5:
                queue.interrupt("the study was interrupted")
        before, runs = finished, runs + 1
        finished = [c.index for c in read_ledger(tmp_path / "study").finished()]
        assert len(set(finished)) == len(finished) and set(before) <= set(finished)
    assert finished == list(range(80)) and runs > 5
    if not refill:  # whatever a pack is refilled with takes its static knobs, so there the draws depend on the order
        assert drawn(read_ledger(tmp_path / "study")) == undisturbed(tmp_path / "undisturbed", 80)
