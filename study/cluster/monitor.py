"""Show how running searches stand."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console
from rich.live import Live
from rich.text import Text

from data_prep.errors import UserError
from data_prep.storage import push
from study.cluster.coordinator import PackProgress
from study.cluster.gauges import StudyMetrics
from study.cluster.jobs import Search
from study.search.ledger import JOURNAL
from study.search.pack_queue import Counts

WATCH_EVERY_S = 0.5
"""Seconds between looks at how the search stands."""

PLAIN_LINE_EVERY_S = 15.0
"""Seconds between progress lines where standard output is no terminal."""

MIRROR_EVERY_S = 10.0
"""Seconds between copies of the ledger."""


LOOK_EVERY_S = 30.0
"""Seconds between calls of `look`."""


PAUSE = 20
"""Both rest so many times as long as they took: with 10,000 configurations a look takes seconds."""


# --- progress -------------------------------------------------------------------------------------------------------


def progress_line(
    counts: Counts, packs: Mapping[str, PackProgress], *, configs: int, already: int, epochs: int, seconds: float
) -> str:
    """One line: configurations done, pruned, failed, best score, lanes alive, time left.

    `already`: configurations that were finished before this run; `seconds`: how long this run has taken.
    """
    done = counts.finished
    parts = [f"{done}/{configs} configs"]
    parts += [f"{n} {name}" for n, name in ((counts.pruned, "pruned"), (counts.failed, "failed")) if n]
    if counts.best is not None:
        parts.append(f"best score {counts.best:.4f}" + (f" (H {100 * counts.best_h:.2f})" if counts.best_h else ""))
    if packs:
        alive = sum(p.alive for p in packs.values())
        parts.append(f"{alive}/{sum(p.lanes for p in packs.values())} lanes alive in {len(packs)} packs")
    if counts.deaths:
        parts.append(f"{counts.deaths} packs died ({counts.last_death})")
    # lanes that a running pack has pruned are finished work, the others as far as their epochs
    work = done - already + sum(p.lanes - p.alive * (1 - p.epoch / epochs) for p in packs.values())
    if work > 0 and done < configs:
        left = max(0.0, (configs - already - work) * seconds / work)
        parts.append(f"about {int(left) // 60}:{int(left) % 60:02d} left")
    return " · ".join(parts)


def best_line(counts: Counts) -> str:
    """A second line for terminals, "" while nothing is complete."""
    values = [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in counts.best_params.items()]
    return "\nbest: " + ", ".join(values) if values else ""


class _View:
    """One search on the terminal, in Prometheus and, where its ledger is mirrored, in storage."""

    def __init__(self, search: Search, study: str, epochs: int) -> None:
        self.search, self.epochs = search, epochs
        self.method = search.searcher.space.method
        self.counts = search.searcher.counts
        self.already = self.mirrored = self.counts.finished
        self.began = time.monotonic()
        self.mirror_at = self.began + MIRROR_EVERY_S
        self.metrics = StudyMetrics(study, search.searcher.space.name)
        self.told = False

    def line(self, packs: Mapping[str, PackProgress]) -> str:
        """How it stands."""
        searcher = self.search.searcher
        line = progress_line(
            self.counts,
            packs,
            configs=searcher.configs,
            already=self.already,
            epochs=self.epochs,
            seconds=time.monotonic() - self.began,
        )
        return f"{self.method}: {line}"

    def update(self, packs: Mapping[str, PackProgress]) -> dict[str, PackProgress]:
        """Publish how it stands; returns those of the packs that are its own."""
        mine = {name: pack for name, pack in packs.items() if pack.space == self.search.searcher.space.name}
        if not mine and not self.counts.packs:
            self.began = time.monotonic()  # still waiting for its turn
        self.metrics.update(self.counts, mine.values())
        return mine

    def copy_ledger(self, console: Console) -> None:
        """Mirror the ledger if it has grown."""
        if self.search.mirror and self.counts.finished != self.mirrored:
            self.mirrored, began = self.counts.finished, time.monotonic()
            try:
                push(self.search.mirror, self.search.searcher.ledger.folder / JOURNAL)
            except UserError as error:  # the search goes on; storage may come back
                console.print(f"the ledger could not be copied: {error}", soft_wrap=True, markup=False)
            self.mirror_at = _rested(began, MIRROR_EVERY_S)


def _rested(began: float, at_least: float) -> float:
    """When what began then, and has just ended, may be done again."""
    return began + max(at_least, PAUSE * (time.monotonic() - began))


@contextmanager
def watch_searches(
    searches: Sequence[Search],
    study: str,
    board: Any,
    epochs: int,
    console: Console,
    look: Callable[[], Any] | None,
) -> Iterator[None]:
    """Show how searches stand: live lines on a terminal, a line now and then elsewhere, and metrics for Prometheus.

    Mirrors the ledgers, too.
    """
    stop, views = threading.Event(), [_View(search, study, epochs) for search in searches]

    first = searches[0].searcher
    looked, look_at = first.counts.finished, time.monotonic() + LOOK_EVERY_S

    def take_a_look() -> None:
        nonlocal looked, look_at
        if look and first.counts.finished != looked and time.monotonic() >= look_at:
            looked, began = first.counts.finished, time.monotonic()
            look()
            look_at = _rested(began, LOOK_EVERY_S)

    def tell(view: _View) -> None:
        view.told = True
        console.print(view.line({}), soft_wrap=True, markup=False)  # errors may hold brackets

    def watch(show_every: float) -> None:
        shown_at = time.monotonic()
        while not stop.wait(WATCH_EVERY_S):
            for view in views:
                if time.monotonic() >= view.mirror_at:
                    view.copy_ledger(console)
            take_a_look()
            try:
                packs = ray.get(board.packs.remote(), timeout=5)
            except ray.exceptions.RayError:
                continue  # a busy cluster answers late; the next lines come soon
            active = [(view, mine) for view in views if (mine := view.update(packs))]
            for view in views:
                if view.search.over and not view.told:
                    tell(view)
            if time.monotonic() - shown_at >= show_every:
                shown_at = time.monotonic()
                show([view.line(mine) + (best_line(view.counts) if live else "") for view, mine in active])

    live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def show(lines: Sequence[str]) -> None:
        if live:
            live.update(Text("\n".join(lines)))
        else:
            for line in lines:
                console.print(line, soft_wrap=True, markup=False)

    thread = threading.Thread(target=watch, args=(0.0 if live else PLAIN_LINE_EVERY_S,), daemon=True)
    if live:
        live.start()
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if live:
            live.stop()
        for view in views:
            view.metrics.update(view.counts, ())
            view.copy_ledger(console)
            if not view.told and view.counts.finished + view.counts.packs:
                tell(view)
