"""Show the leaderboard as text: its columns, and tables of them as Markdown and for the terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from study.evaluation.leaderboard import ORACLE, Row, notes

# --- numbers as words -------------------------------------------------------------------------------------------------


def percent(value: float | None, deviation: float | None = None) -> str:
    """Return a fraction in per cent, with its deviation if there is one; "" for None."""
    if value is None:
        return ""
    return f"{100 * value:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def difference(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a difference of fractions in points, with its interval if there is one; "" for None."""
    if value is None:
        return ""
    points = [f"{round(100 * v, 2) + 0.0:+.2f}" for v in (value, low, high) if v is not None]  # + 0.0: no minus zero
    return points[0] + (f" [{points[1]}, {points[2]}]" if len(points) == 3 else "")


# --- columns ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the leaderboard, wherever people see it: files, terminal, report, comparison."""

    heading: str
    """Heading of the column."""
    field: str
    """Field of `Row` that the column shows, and by which its cells are sorted."""
    text: Callable[[Row], str]
    """What a cell shows of a row."""
    left: bool = False
    """Whether cells are aligned to the left: words are, numbers are not."""


def method_with_marks(row: Row) -> str:
    """Return the method's name, followed by marks: oracle, selected, Pareto."""
    marks = {ORACLE: row.select == ORACLE, "selected": row.selected, "Pareto": row.pareto}
    shown = ", ".join(mark for mark, holds in marks.items() if holds)
    return f"{row.method} ({shown})" if shown else row.method


RANK = Column(heading="rank", field="rank", text=lambda r: str(r.rank or "–"))
METHOD = Column(heading="method", field="method", text=method_with_marks, left=True)
CONFIG = Column(heading="config", field="config_id", text=lambda r: r.config_id, left=True)
SELECT = Column(heading="select", field="select", text=lambda r: r.select, left=True)
VAL_H = Column(heading="val H", field="val_h_mean", text=lambda r: percent(r.val_h_mean, r.val_h_std))
KNOWN = Column(heading="known", field="test_known_micro", text=lambda r: percent(r.test_known_micro))
UNKNOWN = Column(heading="unknown", field="test_unknown_micro", text=lambda r: percent(r.test_unknown_micro))
ALL = Column(heading="all", field="test_all_micro", text=lambda r: percent(r.test_all_micro))
AUSUC = Column(
    heading="AUSUC", field="test_ausuc", text=lambda r: "" if r.test_ausuc is None else f"{r.test_ausuc:.3f}"
)
S = Column(heading="S", field="test_seen_mean", text=lambda r: percent(r.test_seen_mean))
U = Column(heading="U", field="test_unseen_mean", text=lambda r: percent(r.test_unseen_mean))
H = Column(
    heading="H",
    field="test_h_mean",
    text=lambda r: percent(r.test_h_mean, r.test_h_std if r.n_seeds > 1 else None),
)
H_OF_MEANS = Column(heading="H of means", field="test_h_of_means", text=lambda r: percent(r.test_h_of_means))
H_GAIN = Column(heading="H gain [95 %]", field="h_gain", text=lambda r: difference(r.h_gain, r.h_gain_lo, r.h_gain_hi))
BEHIND = Column(
    heading="behind [95 %]", field="h_behind", text=lambda r: difference(r.h_behind, r.h_behind_lo, r.h_behind_hi)
)
NEW_H = Column(
    heading="H new",
    field="new_h_mean",
    text=lambda r: percent(r.new_h_mean, r.new_h_std if r.n_seeds > 1 else None),
)
SEEDS = Column(heading="seeds", field="n_seeds", text=lambda r: str(r.n_seeds or ""))
SOURCE = Column(heading="source", field="source", text=lambda r: r.source, left=True)

COLUMNS = (
    RANK, METHOD, CONFIG, SELECT, VAL_H, KNOWN, UNKNOWN, ALL, AUSUC, S, U, H, H_OF_MEANS, H_GAIN, BEHIND, NEW_H,
    SEEDS, SOURCE,
)  # fmt: skip
"""The columns of leaderboard.md."""


def has_new(rows: Sequence[Row]) -> bool:
    """Return whether a study held target images out of everything but a last test."""
    return any(row.new_h_mean is not None for row in rows)


def mixes_means(rows: Sequence[Row]) -> bool:
    """Return whether published rows stand beside a study's own: theirs are H of means, ours the mean of H."""
    return any(not row.rank and row.test_h_of_means is not None for row in rows)


# --- Markdown ---------------------------------------------------------------------------------------------------------

LEGEND = (
    "known, unknown, all: accuracy over images. S, U: mean accuracy per seen and unseen class. H = 2SU / (S + U). "
    "Base-to-novel: each image among its own half of the classes; cross-dataset: among the target's; S and U are over "
    "images there, and where the test has one kind of class only, H is its accuracy. "
    "H of means: of a row's mean accuracies on seen and unseen classes, as published tables have it; H is the mean of "
    "every seed's. "
    "H gain: over zero-shot CLIP (ensemble). behind: H of the study's own method (its selected row; of an ablation the "
    "full model) minus this row's. H new: on target images that neither training nor selection saw (--test-share). "
    "Intervals: paired bootstrap over test images, 95 %."
)


def to_markdown(rows: Sequence[Row], *, interrupted: bool = False) -> str:
    """Return leaderboard.md: a title, the notes of `notes`, the table, and what its columns mean."""
    lines = [f"# Leaderboard: {', '.join(sorted({r.benchmark for r in rows}))}", ""]
    for note in notes(rows, interrupted=interrupted):
        lines += [f"**{note}**", ""]
    absent = [column for column, shown in {NEW_H: has_new, H_OF_MEANS: mixes_means}.items() if not shown(rows)]
    columns = [column for column in COLUMNS if column not in absent]
    lines.append("| " + " | ".join(column.heading for column in columns) + " |")
    lines.append("|" + "|".join(":--" if column.left else "--:" for column in columns) + "|")
    lines += ["| " + " | ".join(c.text(row).replace("|", "\\|") for c in columns) + " |" for row in rows]
    return "\n".join([*lines, "", LEGEND, ""])


# --- the terminal -----------------------------------------------------------------------------------------------------


def _method_and_config(row: Row) -> str:
    method = escape(method_with_marks(replace(row, selected=False)))  # the rank has a star instead
    return method if row.config_id.startswith("zero-shot") else f"{method} [dim]{escape(row.config_id)}[/dim]"


_BRIEF = (
    replace(RANK, heading="", text=lambda r: f"{r.rank or '–'}{'*' if r.selected else ' '}"),
    replace(METHOD, text=_method_and_config),
    replace(VAL_H, text=lambda r: percent(r.val_h_mean)),
    *(S, U, H, H_GAIN),
)
"""The columns that fit a terminal of 80 characters; the files have the others."""


def to_terminal(rows: Sequence[Row], *, interrupted: bool = False) -> Table:
    """Return the leaderboard as a rich table."""
    title = "\n".join(notes(rows, interrupted=interrupted)) or None
    alike = next((row.val_alike for row in rows if row.selected and row.val_alike), None)
    caption = "* selected: its method's best by validation" + (
        f"; {100 * alike:.0f} % of the other choices agree with the consensus as well, within noise" if alike else ""
    )
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # the interval gives way to the second test: a terminal of 80 characters has no room for both
    brief_gain = replace(H_GAIN, heading="gain", text=lambda r: difference(r.h_gain))
    columns = [*_BRIEF[:-1], brief_gain, NEW_H] if has_new(rows) else list(_BRIEF)
    for column in columns:
        alignment: Literal["left", "right"] = "left" if column.left else "right"
        table.add_column(column.heading, justify=alignment, no_wrap=column.field != METHOD.field)
    for row in rows:
        table.add_row(*(column.text(row) for column in columns), style="bold" if row.selected else None)
    return table
