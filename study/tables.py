"""The tables of the report: numbers of the leaderboard and the ledger, unrounded behind what is shown."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from data_prep.storage import join
from study.leaderboard import ORACLE, SHOWN, Row, percent
from study.ledger import Configuration
from study.page import Cell, Table
from study.results import Results

_NUMBERS = {
    "H": "test_h_mean",
    "H gain [95 %]": "h_gain",
    "S": "test_seen_mean",
    "U": "test_unseen_mean",
    "val H": "val_h_mean",
    "behind [95 %]": "h_behind",
    "AUSUC": "test_ausuc",
    "known": "test_known_micro",
    "unknown": "test_unknown_micro",
    "all": "test_all_micro",
}
"""The leaderboard's column behind each heading: what its cells are sorted by."""


def leaderboard_table(results: Results) -> Table:
    """Every row, with its unrounded numbers behind the shown ones."""
    rows = [[Cell(text=str(r.rank or "–"), value=r.rank or None), *row_cells(r, results)[1]] for r in results.rows]
    return Table(
        id="rows",
        columns=("rank", *row_cells(results.rows[0], results)[0]),
        rows=rows,
        strong=frozenset(i for i, row in enumerate(results.rows) if row is results.own),
        filter=True,
    )


def row_cells(row: Row, results: Results) -> tuple[tuple[str, ...], list[Cell]]:
    """Headings and cells of one row, without its rank."""
    on = {
        ORACLE: row.select == ORACLE,
        "selected": row.selected,
        "Pareto": row.pareto,
        "published": not row.n_seeds,
        "baseline": row.n_seeds and row.method.partition(":")[0] != results.searched,
    }
    params = json.dumps(json.loads(row.params), indent=1) if row.params != "{}" else ""
    return ("method", "configuration", *_NUMBERS, "source"), [
        Cell(text=row.method, marks=tuple(mark for mark, holds in on.items() if holds)),
        Cell(
            text=row.config_id,
            value=row.config_id,
            code="\n\n".join(filter(None, (rerun_command(row, results), params))),
        ),
        *_numbers(row, _NUMBERS),
        Cell(text=row.source),
    ]


def _numbers(row: Row, headings: Sequence[str] | Mapping[str, str]) -> list[Cell]:
    return [Cell(text=SHOWN[heading](row), value=getattr(row, _NUMBERS[heading])) for heading in headings]


def rerun_command(row: Row, results: Results) -> str:
    """The command that makes a row again; "" for published ones and means over rotations."""
    if not row.n_seeds or results.rotations:
        return ""
    if row.params == "{}":  # zero-shot CLIP stands in every study
        return str(results.run.get("command", ""))
    return f"python study/run.py --rerun {shlex.quote(join(results.folder, f'configs/{row.config_id}.json'))}"


def _configuration(c: Configuration) -> Cell:
    return Cell(text=c.config_id, value=c.config_id, code=json.dumps(c.params, indent=1))


def best_table(best: Sequence[Configuration]) -> Table:
    """The best configurations so far."""
    return Table(
        id="best",
        columns=("configuration", "score", "H on folds", "S on folds", "U on folds"),
        rows=[
            [
                _configuration(c),
                Cell(text=f"{c.score:.4f}", value=c.score),
                *(
                    Cell(text=percent(c.metrics[k]), value=c.metrics[k])
                    for k in ("val_h_mean", "val_seen", "val_unseen")
                ),
            ]
            for c in best
        ],
    )


def knobs_table(knobs: Mapping[str, Sequence[Any]], chosen: Mapping[str, Any], why: Mapping[str, str]) -> Table:
    """What was searched (`knobs`, as the ledger keeps them), what of it was chosen, and why it is searched."""

    def values(knob: Sequence[Any]) -> str:
        _, low, high, log, choices, _ = knob
        return ", ".join(map(str, choices)) if choices else f"{low:g} to {high:g}{', log scale' if log else ''}"

    def shown(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return Table(
        id="knobs",
        columns=("knob", "searched", "chosen", "why it is searched"),
        rows=[
            [
                Cell(text=name),
                Cell(text=values(knob)),
                Cell(text=shown(chosen[name]) if name in chosen else ""),
                Cell(text=why.get(name, "")),
            ]
            for name, knob in knobs.items()
        ],
    )


def failures_table(failed: Sequence[Configuration]) -> Table:
    """Configurations that failed, and why."""
    return Table(
        id="failures",
        columns=("configuration that failed", "reason"),
        rows=[[_configuration(c), Cell(text=c.reason)] for c in failed],
    )


def confusions_table(confusions: pa.Table) -> Table:
    """Pairs of an unseen class and a seen one that it was taken for, with images."""
    columns = "unseen class|taken for|distance|share of its images|its images|what they were taken for|nearest texts"
    return Table(
        id="confusions-table",
        columns=tuple(columns.split("|")),
        rows=[
            [
                Cell(text=p["label"]),
                Cell(text=p["predicted"]),
                Cell(text=f"{p['distance']:g}", value=p["distance"]),
                Cell(text=f"{100 * p['share']:.0f} %", value=p["share"]),
                Cell(images=tuple(p["images"]), image_text=p["label"], value=p["label"]),
                Cell(images=tuple(p["images_of_predicted"]), image_text=p["predicted"], value=p["predicted"]),
                Cell(text=", ".join(p["nearest"])),
            ]
            for p in confusions.to_pylist()
        ],
        filter=True,
    )


def ablation_table(variants: Mapping[str, Row], published: Mapping[str, Sequence[float | None]]) -> Table:
    """Every variant and how far it lies behind the full model. `published`: S, U, H by variant, if any were."""
    ours, theirs = ("S", "U", "H", "behind [95 %]"), ("S", "U", "H")
    return Table(
        id="ablation-table",
        columns=(
            "variant",
            *ours[:-1],
            "behind the full model [95 %]",
            *(f"published {name}" for name in theirs if published),
        ),
        rows=[
            [
                Cell(text=name),
                *_numbers(row, ours),
                *(Cell(text=percent(v), value=v) for v in published.get(name, (None,) * len(theirs)) if published),
            ]
            for name, row in variants.items()
        ],
    )


def facts_table(facts: Mapping[str, str], options: Mapping[str, Any]) -> Table:
    """Where a study comes from, and all its options."""
    return Table(
        id="facts",
        columns=("what", "value"),
        rows=[
            *([Cell(text=what), Cell(text=value)] for what, value in facts.items() if value),
            [Cell(text="all options"), Cell(text="show", code=json.dumps(options, indent=1))],
        ],
    )
