"""Who looks at a running search, how often, and what the terminal shows."""

import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import ray
import toy
from rich.console import Console

from data_prep.storage import locate
from study.cluster import monitor
from study.cluster.capacity import Room
from study.cluster.coordinator import Coordinator, PackProgress
from study.cluster.monitor import (
    LedgerMirror,
    Monitor,
    ReportWriter,
    SearchLines,
    Terminal,
    Waiting,
    best_line,
    progress_line,
)
from study.options import ResourceOptions
from study.search.ledger import open_ledger
from study.search.pack_queue import Counts, PackQueue
from study.search.records import PackReport

NAME = "[/a]"
"""Not a closing tag of rich's markup."""


class Observer:
    """Notes when it looks."""

    def __init__(self, every_s: float, *, new: Callable[[], bool] = lambda: True, takes: float = 0.0) -> None:
        self.every_s, self.new, self.takes = every_s, new, takes
        self.looks: list[float] = []
        self.ended = False

    def look(self, packs: Mapping[str, PackProgress]) -> bool:
        assert set(packs) == {"a"}
        self.looks.append(time.monotonic())
        time.sleep(self.takes)
        return self.new()

    def end(self) -> None:
        self.ended = True


def test_observers_look_at_their_own_pace(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(monitor, "REST", 100)
    coordinator = Coordinator.remote({})  # type: ignore[attr-defined]
    ray.get(coordinator.report.remote("a", PackProgress(space="toy", lanes=4, alive=3, epoch=2)))
    always, seldom, slow, waiting = Observer(0.0), Observer(0.5), Observer(0.0, takes=0.05), Observer(0.0)
    waiting.every_s, waiting.new = 0.5, lambda: False
    observers = [always, seldom, slow, waiting]
    with Monitor(observers, coordinator):
        time.sleep(2.0)
    assert len(always.looks) > 8
    assert all(later - earlier > 0.49 for earlier, later in zip(seldom.looks, seldom.looks[1:], strict=False))
    assert len(slow.looks) == 1  # it rests a hundred times as long as it took
    assert len(waiting.looks) > len(seldom.looks)  # with nothing new it looks again at once
    assert all(observer.ended for observer in observers)
    ray.kill(coordinator)


def test_what_is_printed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, written = io.StringIO(), list[int]()
    console = Console(file=said, width=200)
    with open_ledger(tmp_path / NAME.replace("/", "."), space=toy.SPACE, identity=toy.IDENTITY) as book:
        queue = PackQueue(book, toy.SPACE, configs=4, pack=2, sampler="random")
        lines, mirror = SearchLines(queue, toy.EPOCHS), LedgerMirror(queue, locate(tmp_path / "mirror"), console)
        terminal = Terminal([lines], console, Waiting(Room(ResourceOptions(), 1)))
        report = ReportWriter(queue, lambda: written.append(queue.counts.finished))
        assert not mirror.look({}) and not report.look({}) and not terminal.look({})
        queue.next_pack("a")
        queue.end("a", PackReport(crash=f"RuntimeError: {NAME}"))
        lanes = queue.next_pack("b")
        queue.end("b", PackReport(ended={x.number: toy.lane_result(x.params, x.seed) for x in lanes}))
        assert mirror.look({}) and report.look({}) and not mirror.look({}) and not report.look({})
        assert locate(tmp_path / "mirror").read("study.journal") == (book.folder / "study.journal").read_bytes()
        lines_before = said.getvalue()
        terminal.end()
        terminal.end()
        monkeypatch.setattr(monitor, "FRESH_S", 0.0)  # of a long pack the page shows that its driver lives
        assert report.look({})
    assert lines_before == "" and written == [2, 2]
    (line,) = said.getvalue().splitlines()
    assert line.startswith("Toy: 2/4 configs · ") and f" · 1 packs died (RuntimeError: {NAME}) · " in line


def test_a_mirror_that_fails_is_said_and_the_search_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    said = io.StringIO()
    with open_ledger(tmp_path / "study", space=toy.SPACE, identity=toy.IDENTITY) as book:
        queue = PackQueue(book, toy.SPACE, configs=4, pack=2, sampler="random")
        mirror = LedgerMirror(queue, locate(tmp_path / "file") / NAME, Console(file=said, width=200))
        lanes = queue.next_pack("a")
        queue.end("a", PackReport(ended={x.number: toy.lane_result(x.params, x.seed) for x in lanes}))
        assert mirror.look({})
    assert said.getvalue().startswith("the ledger could not be copied: ") and NAME in said.getvalue()


def test_progress_line() -> None:
    counts = Counts(complete=6, pruned=5, failed=1, best=0.51234, best_h=0.41234)
    packs = {
        "a": PackProgress(space="toy", lanes=8, alive=8, epoch=5),
        "b": PackProgress(space="toy", lanes=8, alive=2, epoch=10),
    }
    line = progress_line(counts, packs, configs=48, already=4, epochs=20, seconds=60)
    # 8 configurations of this run, 2 + 7 worth of running ones: 17 of 44 in 60 s
    assert line == (
        "12/48 configs · 5 pruned · 1 failed · best score 0.5123 (H 41.23) · 10/16 lanes alive in 2 packs · "
        "about 1:35 left"
    )
    assert progress_line(Counts(), {}, configs=8, already=0, epochs=20, seconds=1) == "0/8 configs"
    counts.add("complete", 0.6, 0.4, {"lr": 0.00123456, "adapter": "tokens"})
    counts.add("complete", 0.5, 0.4, {"lr": 0.5, "adapter": "tokens"})
    assert best_line(counts) == "\nbest: lr 0.00123, adapter tokens" and best_line(Counts()) == ""


def test_what_packs_wait_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(ResourceOptions(cpus_per_pack=4, gpus_per_pack=0.5), 3)
    waiting, now = Waiting(room), 1000.0
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now)
    assert waiting.line(0) == ""  # actors are starting
    now += 80
    assert waiting.line(0) == "no pack has run for 1:20: each needs 4 CPUs and 0.5 GPUs"
    assert waiting.line(1) == ""
    room.short_since = now - 20
    assert waiting.line(1) == "waiting for more nodes with 4 CPUs and 0.5 GPUs for 0:20"
    assert waiting.line(0) == "waiting for more nodes with 4 CPUs and 0.5 GPUs for 0:20"
