"""The page of a study whose search runs, or was interrupted: what was tried so far.

While the search runs the page loads itself again, as long as somebody writes it.
"""

from collections.abc import Sequence
from pathlib import Path

from data_prep.storage import Storage
from study.evaluation.leaderboard import INTERRUPTED_NOTE
from study.evaluation.leaderboard_text import percent
from study.outputs.results import score_study
from study.reporting.page import REPORT, Cell, Section, Table, render
from study.reporting.searched import configuration_cell, history_chart, lanes_chart
from study.reporting.seen_unseen import configurations_chart
from study.search.ledger import JOURNAL, Ledger, read_ledger
from study.search.records import Configuration

REFRESH_S = 30
"""Seconds after which the page loads itself again."""


def write_running_report(storage: Storage, ledger: Ledger) -> None:
    """Write report.html of the search whose ledger is given, in place of that of the finished study."""
    words = f"This page loads itself again every {REFRESH_S} s."
    section = tried_section(ledger, "The search is running", words)
    storage.write(REPORT, render(f"{ledger.folder.name} (running)", [section], refresh_s=REFRESH_S).encode())


def write_interrupted_report(storage: Storage) -> None:
    """Write report.html of an interrupted study in place of that of its running search, if its journal is here."""
    if not (storage.is_local and (Path(storage.root) / JOURNAL).exists()):
        return
    ledger = read_ledger(Path(storage.root))
    words = "Run the study again with --resume: nothing that has finished is trained a second time."
    section = tried_section(ledger, "The study was interrupted", words)
    page = render(f"{ledger.folder.name} (interrupted)", [section], warning=INTERRUPTED_NOTE)
    storage.write(REPORT, page.encode())


def tried_section(ledger: Ledger, title: str, advice: str) -> Section:
    """Show the configurations that have finished, and the best of them."""
    done, best = ledger.finished(), ledger.best(10)
    counts = {s: sum(c.state == s for c in done) for s in ("complete", "pruned", "failed")}
    words = f"{len(done)} configurations: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)
    return Section(
        id="headline",
        title=title,
        paragraphs=[
            words if done else "No configuration has finished yet.",
            advice,
        ],
        charts=[configurations_chart(done), history_chart(score_study(ledger)), lanes_chart(done)] if best else [],
        tables=[best_table(best)] if best else [],
    )


def best_table(best: Sequence[Configuration]) -> Table:
    """List the best configurations so far."""
    return Table(
        id="best",
        columns=("configuration", "score", "H on folds", "S on folds", "U on folds"),
        rows=[
            [
                configuration_cell(c),
                Cell(text=f"{c.score:.4f}", value=c.score),
                *(
                    Cell(text=percent(c.metrics[k]), value=c.metrics[k])
                    for k in ("val_h_mean", "val_seen", "val_unseen")
                ),
            ]
            for c in best
        ],
    )
