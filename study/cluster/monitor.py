"""Who looks at running searches, and how often: the terminal, Prometheus, the ledger's mirror, the running report.

Ray Tune's callbacks would not do: they are called when a pack reports, which may take hours, and Tune waits for them.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle
from rich.console import Console
from rich.live import Live
from rich.text import Text

from data_prep.errors import UserError
from data_prep.storage import Storage, push
from study.cluster.capacity import Room, minutes, needs
from study.cluster.coordinator import PackProgress
from study.cluster.gauges import SearchGauges
from study.cluster.jobs import Search
from study.search.ledger import JOURNAL
from study.search.pack_queue import Counts, PackQueue

LOOK_EVERY_S = 0.5
"""Seconds between two looks at the running packs."""

PLAIN_LINE_EVERY_S = 15.0
"""Seconds between progress lines where standard output is no terminal."""

IDLE_SAID_AFTER_S = 15.0
"""Seconds without a running pack before it is said: actors start in 5 to 10 s."""

MIRROR_EVERY_S = 10.0
"""Seconds between copies of the ledger."""

REPORT_EVERY_S = 30.0
"""Seconds between two reports of the running study."""

REST = 20
"""An observer rests this many times as long as its last look took: of 10,000 configurations a report takes seconds."""


INTERRUPTED_S = 1.0
"""Seconds that an interrupted search waits for the end of a look: all of a study's end must fit into some seconds."""

FRESH_S = 120.0
"""Seconds after which the report of the running study is written again without new results: it shows that it lives."""


class Observer(Protocol):
    """What looks at running searches now and then."""

    @property
    def every_s(self) -> float:
        """Seconds between two looks at least."""

    def look(self, packs: Mapping[str, PackProgress]) -> bool:
        """Look at how the searches stand; return whether there was anything new, or the observer looks again at once.

        `packs`: those that run.
        """

    def end(self) -> None:
        """Look for the last time: the searches have ended, or were interrupted."""


class Monitor:
    """Lets observers look at running searches, each at its own pace, on a thread of its own."""

    def __init__(self, observers: Sequence[Observer], coordinator: ActorHandle) -> None:
        """`coordinator`: knows the running packs."""
        self._observers, self._coordinator = observers, coordinator
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join(None if error is None else INTERRUPTED_S)
        for observer in self._observers:
            observer.end()

    def _watch(self) -> None:
        due = [time.monotonic() + observer.every_s for observer in self._observers]
        packs: Mapping[str, PackProgress] = {}
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                answer: Any = ray.get(self._coordinator.packs.remote(), timeout=5)
                packs = answer
            except ray.exceptions.RayError:
                pass  # a busy cluster answers late: until then its last answer stands
            for i, observer in enumerate(self._observers):
                began = time.monotonic()
                if began >= due[i] and observer.look(packs):
                    due[i] = began + max(observer.every_s, REST * (time.monotonic() - began))


def make_monitor(
    searches: Sequence[Search],
    coordinator: ActorHandle,
    room: Room,
    *,
    study: str,
    console: Console,
    report: Callable[[], object] | None,
    others: Sequence[Observer] = (),
) -> Monitor:
    """Make the monitor of a study's searches.

    `room`: what the cluster holds; `report`: called now and then when the first search has new results, to write the
    report of the running study; `others`: observers of the caller.
    """
    queues = [search.queue for search in searches]
    observers: list[Observer] = [SearchGauges(queue, study) for queue in queues]
    observers += [LedgerMirror(search.queue, search.mirror, console) for search in searches if search.mirror]
    if report:
        observers.append(ReportWriter(queues[0], report))
    observers += others
    # last of all: how the copy of a ledger ended is said before how its search did
    observers.append(Terminal([SearchLines(s.queue, s.training.epochs) for s in searches], console, Waiting(room)))
    return Monitor(observers, coordinator)


# --- terminal -------------------------------------------------------------------------------------------------------


def progress_line(
    counts: Counts, packs: Mapping[str, PackProgress], *, configs: int, already: int, epochs: int, seconds: float
) -> str:
    """Return one line: configurations done, pruned, failed, best score, lanes alive, time left.

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
        parts.append(f"about {minutes(left)} left")
    return " · ".join(parts)


def best_line(counts: Counts) -> str:
    """Return a second line for terminals, "" while nothing is complete."""
    values = [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in counts.best_params.items()]
    return "\nbest: " + ", ".join(values) if values else ""


class SearchLines:
    """How one search stands, in words."""

    def __init__(self, queue: PackQueue, epochs: int) -> None:
        """`epochs`: of a configuration that is not pruned."""
        self.queue, self.counts, self._epochs = queue, queue.counts, epochs
        self._already = self.counts.finished
        self._began = time.monotonic()
        self.ended = False
        """Whether its last line was printed."""

    def packs_of(self, packs: Mapping[str, PackProgress]) -> dict[str, PackProgress]:
        """Return the search's own packs; its clock starts with the first."""
        own = {name: pack for name, pack in packs.items() if pack.space == self.queue.space.name}
        if not own and not self.counts.packs:
            self._began = time.monotonic()  # still waiting for its turn
        return own

    def line(self, packs: Mapping[str, PackProgress]) -> str:
        """Return the progress line; `packs`: the search's own."""
        line = progress_line(
            self.counts,
            packs,
            configs=self.queue.configs,
            already=self._already,
            epochs=self._epochs,
            seconds=time.monotonic() - self._began,
        )
        return f"{self.queue.space.method}: {line}"


class Waiting:
    """What packs wait for, in words."""

    def __init__(self, room: Room) -> None:
        """`room`: what the cluster holds."""
        self._room, self._needs = room, needs(room.resources)
        self._idle_since: float | None = None

    def line(self, packs: int) -> str:
        """Return what the next packs wait for and for how long, "" where nobody waits; `packs`: those that run."""
        now = time.monotonic()
        self._idle_since = None if packs else self._idle_since or now
        if self._idle_since and now - self._idle_since >= IDLE_SAID_AFTER_S:
            return f"no pack has run for {minutes(now - self._idle_since)}: each needs {self._needs}"
        if self._room.short_since:
            return f"waiting for more nodes with {self._needs} for {minutes(now - self._room.short_since)}"
        return ""


class Terminal:
    """Shows live lines on a terminal, a line now and then elsewhere, and a last line for each search that is over."""

    every_s = 0.0

    def __init__(self, searches: Sequence[SearchLines], console: Console, waiting: Waiting) -> None:
        self._searches, self._console, self._waiting = searches, console, waiting
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._line_every_s = 0.0 if self._live else PLAIN_LINE_EVERY_S
        self._shown = time.monotonic()

    def look(self, packs: Mapping[str, PackProgress]) -> bool:
        """Print the last lines of searches that are over, and how the others stand."""
        running = [(search, own) for search in self._searches if (own := search.packs_of(packs))]
        for search in self._searches:
            if search.queue.over:
                self._print_last(search)
        waiting = self._waiting.line(len(packs)) if not all(search.queue.over for search in self._searches) else ""
        if time.monotonic() - self._shown < self._line_every_s:
            return False
        self._shown = time.monotonic()
        if self._live:
            lines = [search.line(own) + best_line(search.counts) for search, own in running]
            lines += [waiting] if waiting else []
            self._live.start()
            self._live.update(Text("\n".join(lines)))
        else:
            for search, own in running:
                self._print(search.line(own))
            if waiting:
                self._print(waiting)
        return True

    def end(self) -> None:
        """Print the last lines of all searches that were begun."""
        if self._live:
            self._live.stop()
        for search in self._searches:
            if search.counts.finished + search.counts.packs:
                self._print_last(search)

    def _print_last(self, search: SearchLines) -> None:
        if not search.ended:
            search.ended = True
            self._print(search.line({}))

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)  # names and errors may hold brackets


# --- files ----------------------------------------------------------------------------------------------------------


class LedgerMirror:
    """Copies a ledger that has grown to where it is mirrored."""

    def __init__(self, queue: PackQueue, mirror: Storage, console: Console) -> None:
        self.every_s = MIRROR_EVERY_S
        self._journal, self._counts = queue.ledger.folder / JOURNAL, queue.counts
        self._mirror, self._console = mirror, console
        self._copied = self._counts.finished

    def look(self, packs: Mapping[str, PackProgress]) -> bool:
        """Copy the ledger if it has grown."""
        if self._counts.finished == self._copied:
            return False
        self._copied = self._counts.finished
        try:
            push(self._mirror, self._journal)
        except UserError as error:  # the search goes on; storage may come back
            self._console.print(f"the ledger could not be copied: {error}", soft_wrap=True, markup=False)
        return True

    def end(self) -> None:
        """Copy the ledger if it has grown."""
        self.look({})


class ReportWriter:
    """Has the report of the running study written when a search has new results, and now and then without."""

    def __init__(self, queue: PackQueue, write: Callable[[], object]) -> None:
        self.every_s = REPORT_EVERY_S
        self._counts, self._write = queue.counts, write
        self._written, self._when = self._counts.finished, time.monotonic()

    def look(self, packs: Mapping[str, PackProgress]) -> bool:
        """Write the report if there are new results, or if it has grown old."""
        if self._counts.finished == self._written and time.monotonic() - self._when < FRESH_S:
            return False
        self._written, self._when = self._counts.finished, time.monotonic()
        with contextlib.suppress(UserError):  # storage or database may come back; the search itself waits for it
            self._write()
        return True

    def end(self) -> None:
        """Write nothing: the report of the finished study follows."""
