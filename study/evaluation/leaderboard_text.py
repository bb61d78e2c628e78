"""The leaderboard as text: Markdown for files, a table for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from study.evaluation.leaderboard import ORACLE, ORACLE_NOTE, Row

PUBLISHED_COLUMNS = ("published_seen", "published_unseen", "published_h")


# --- for people -----------------------------------------------------------------------------------------------------


def percent(value: float | None, deviation: float | None = None) -> str:
    """A fraction in per cent, with its deviation if there is one; "" for None."""
    if value is None:
        return ""
    return f"{100 * value:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def difference(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A difference of fractions in points, with its interval if there is one; "" for None."""
    if value is None:
        return ""
    points = [f"{round(100 * v, 2) + 0.0:+.2f}" for v in (value, low, high) if v is not None]  # + 0.0: no minus zero
    return points[0] + (f" [{points[1]}, {points[2]}]" if len(points) == 3 else "")


def _gain(row: Row) -> str:
    return difference(row.h_gain, row.h_gain_lo, row.h_gain_hi)


def _method(row: Row) -> str:
    marks = [
        word for word, on in ((ORACLE, row.select == ORACLE), ("selected", row.selected), ("Pareto", row.pareto)) if on
    ]
    return row.method + (f" ({', '.join(marks)})" if marks else "")


SHOWN: dict[str, Any] = {
    "rank": lambda r: str(r.rank or "–"),
    "method": _method,
    "config": lambda r: r.config_id,
    "select": lambda r: r.select,
    "val H": lambda r: percent(r.val_h_mean, r.val_h_std),
    "known": lambda r: percent(r.test_known_micro),
    "unknown": lambda r: percent(r.test_unknown_micro),
    "all": lambda r: percent(r.test_all_micro),
    "AUSUC": lambda r: "" if r.test_ausuc is None else f"{r.test_ausuc:.3f}",
    "S": lambda r: percent(r.test_seen_mean),
    "U": lambda r: percent(r.test_unseen_mean),
    "H": lambda r: percent(r.test_h_mean, r.test_h_std if r.n_seeds > 1 else None),
    "H gain [95 %]": _gain,
    "behind [95 %]": lambda r: difference(r.h_behind, r.h_behind_lo, r.h_behind_hi),
    "seeds": lambda r: str(r.n_seeds or ""),
    "source": lambda r: r.source,
}


_LEFT = ("method", "config", "select", "source")


_LEGEND = (
    "known, unknown, all: accuracy over images. S, U: mean accuracy per seen and unseen class. H = 2SU / (S + U). "
    "Base-to-novel: each image among its own half of the classes; cross-dataset: among the target's; S and U are over "
    "images there, and where the test has one kind of class only, H is its accuracy. "
    "H gain: over zero-shot CLIP (ensemble). behind: H of the study's own method (its selected row; of an ablation the "
    "full model) minus this row's. Intervals: paired bootstrap over test images, 95 %."
)


def to_markdown(rows: Sequence[Row]) -> str:
    """The leaderboard for reading: percentages, a line of words about each kind of number."""
    lines = [f"# Leaderboard: {', '.join(sorted({r.benchmark for r in rows}))}", ""]
    if any(row.select == ORACLE for row in rows):
        lines += [f"**{ORACLE_NOTE}**", ""]
    lines.append("| " + " | ".join(SHOWN) + " |")
    lines.append("|" + "|".join(":--" if name in _LEFT else "--:" for name in SHOWN) + "|")
    lines += ["| " + " | ".join(show(row).replace("|", "\\|") for show in SHOWN.values()) + " |" for row in rows]
    lines += ["", _LEGEND, ""]
    return "\n".join(lines)


def ablation_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    other = next((line["published_in"] for line in lines if line["published_in"]), "")
    benchmark = next((line["benchmark"] for line in lines), "")
    head = ["variant", "S", "U", "H", "H gain [95 %]", "behind the full model [95 %]"]
    head += ["published S", "published U", "published H"] if other else []
    text = [f"# Ablation: {benchmark}", "", "| " + " | ".join(head) + " |"]
    text.append("|:--" + "|--:" * (len(head) - 1) + "|")
    for line in lines:
        cells = [line["variant"], percent(line["test_seen_mean"]), percent(line["test_unseen_mean"])]
        cells.append(percent(line["test_h_mean"], line["test_h_std"]))
        cells += [difference(*(line[f"{name}{end}"] for end in ("", "_lo", "_hi"))) for name in ("h_gain", "h_behind")]
        cells += [percent(line[name]) for name in PUBLISHED_COLUMNS] if other else []
        text.append("| " + " | ".join(cells) + " |")
    note = f"Published columns: {other}. Another data set: only the order of the variants can be compared."
    return "\n".join([*text, "", *([note, ""] if other else []), _LEGEND, ""])


def _method_and_config(row: Row) -> str:
    return row.method if row.config_id.startswith("zero-shot") else f"{row.method} [dim]{row.config_id}[/dim]"


_BRIEF: dict[str, Any] = {
    "": lambda r: f"{r.rank or '–'}{'*' if r.selected else ' '}",
    "method": lambda r: _method_and_config(replace(r, method=_method(replace(r, selected=False)))),
    "val H": lambda r: percent(r.val_h_mean),
    **{name: SHOWN[name] for name in ("S", "U", "H", "H gain [95 %]")},
}
"""What fits a terminal of 80 columns; the files have the rest."""


def to_terminal(rows: Sequence[Row]) -> Table:
    """The leaderboard as a rich table."""
    oracle = any(row.select == ORACLE for row in rows)
    caption = "* selected: its method's best by validation"
    table = Table(title=ORACLE_NOTE if oracle else None, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in _BRIEF:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=name != "method")
    for row in rows:
        table.add_row(*(show(row) for show in _BRIEF.values()), style="bold" if row.selected else None)
    return table
