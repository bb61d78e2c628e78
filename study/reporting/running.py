"""The page of a study whose search runs: what was tried so far. It loads itself again."""

from collections.abc import Sequence

from data_prep.storage import Storage
from study.evaluation.leaderboard_text import percent
from study.outputs.results import score_study
from study.reporting.page import REPORT, Cell, Section, Table, render
from study.reporting.searched import configuration_cell, history_chart, lanes_chart
from study.reporting.seen_unseen import configurations_chart
from study.search.ledger import Ledger
from study.search.records import Configuration

REFRESH_S = 30
"""Seconds after which the page loads itself again."""


def write_running_report(storage: Storage, ledger: Ledger) -> None:
    """Write report.html of the search whose ledger is given, in place of that of the finished study."""
    page = render(f"{ledger.folder.name} (running)", [running_section(ledger)], refresh_s=REFRESH_S)
    storage.write(REPORT, page.encode())


def running_section(ledger: Ledger) -> Section:
    """Show the configurations that have finished, and the best of them."""
    done, best = ledger.finished(), ledger.best(10)
    counts = {s: sum(c.state == s for c in done) for s in ("complete", "pruned", "failed")}
    words = f"{len(done)} configurations: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)
    return Section(
        id="headline",
        title="The search is running",
        paragraphs=[
            words if done else "No configuration has finished yet.",
            f"This page loads itself again every {REFRESH_S} s.",
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
