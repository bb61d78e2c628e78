"""The tables of the report: numbers of the leaderboard and the ledger, unrounded behind what is shown."""

import json
import shlex
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from data_prep.storage import join
from study.evaluation.leaderboard import ORACLE, Row
from study.evaluation.leaderboard_text import SHOWN, difference, percent
from study.outputs.results import Results
from study.reporting.page import Cell, Chart, Section, Table
from study.reporting.style import MUTED, OWN, whiskers

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
        *number_cells(row, _NUMBERS),
        Cell(text=row.source),
    ]


def number_cells(row: Row, headings: Sequence[str] | Mapping[str, str]) -> list[Cell]:
    return [Cell(text=SHOWN[heading](row), value=getattr(row, _NUMBERS[heading])) for heading in headings]


def rerun_command(row: Row, results: Results) -> str:
    """The command that makes a row again; "" for published ones and means over rotations."""
    if not row.n_seeds or results.rotations:
        return ""
    if row.params == "{}":  # zero-shot CLIP stands in every study
        return str(results.run.get("command", ""))
    return f"python study/run.py --rerun {shlex.quote(join(results.folder, f'configs/{row.config_id}.json'))}"


# --- rows of the leaderboard ------------------------------------------------------------------------------------------


def gain_chart(results: Results) -> Chart:
    """Every method's selected row against zero-shot CLIP."""
    shown = [r for r in results.rows if r.selected and r.h_gain is not None][::-1]
    figure = go.Figure()
    for r in shown:
        assert r.h_gain is not None and r.h_gain_lo is not None and r.h_gain_hi is not None
        figure.add_scatter(
            x=[100 * r.h_gain],
            y=[r.method],
            error_x=whiskers([(r.h_gain, r.h_gain_lo, r.h_gain_hi)]),
            mode="markers",
            marker={"size": 11, "color": OWN if r is results.own else MUTED},
            hovertemplate=f"{difference(r.h_gain, r.h_gain_lo, r.h_gain_hi)}<extra>{r.method}</extra>",
        )
    figure.update_layout(showlegend=False, xaxis_title="points of H")
    return Chart(
        id="chart-gain",
        title="Gain over zero-shot CLIP",
        caption="Each method's selected configuration; bars are 95 % intervals over test images.",
        figure=figure,
        height=110 + 42 * len(shown),
    )


def _about(results: Results) -> str:
    """What was done, in short, for a reader who has not seen the project."""
    data, done = results.run.get("data"), [c for r in results.rotations or [results] for c in r.configurations]
    knobs = len((results.rotations or [results])[0].identity.get("knobs", ()))
    words = (
        f"{len(done)} configurations of its {knobs} knobs were compared" if done else "Given configurations were scored"
    )
    if data:
        words += (
            " for learning {seen_classes} seen classes from {source_images} labelled images and recognising "
            "{unseen_classes} more classes of which only the names are known".format(**data)
        )
    honest = (
        "" if any(r.select == ORACLE for r in results.rows) else "without a label of an unseen class or a test image"
    )
    chosen = f", and the choice among them was made {honest}" if done and honest else ""
    return f"{words}{chosen}. H is the harmonic mean of the accuracies on seen and on unseen classes."


def _verdict(own: Row) -> str:
    if own.h_gain_lo is None or own.h_gain_hi is None:
        return ""
    if own.h_gain_lo > 0:
        return "The interval excludes zero: on other test images of this kind the gain would very likely persist."
    if own.h_gain_hi < 0:
        return "The interval lies below zero: zero-shot CLIP, without any training, is better here."
    return "The interval includes zero: on these test images the method cannot be told from zero-shot CLIP."


def headline_section(results: Results) -> Section:
    own = results.own
    if own is None:
        return Section(id="headline", title="Result", paragraphs=["No configuration could be scored."])
    over = f"mean over {len(results.rotations)} rotations of the unseen classes, " if results.rotations else ""
    sentence = (
        f"{own.method} with the configuration that selection chose reaches H = {percent(own.test_h_mean)} on "
        f"{own.benchmark}, {difference(own.h_gain)} points over zero-shot CLIP ({over}95 % interval "
        f"{difference(own.h_gain_lo)} to {difference(own.h_gain_hi)})."
    )
    return Section(
        id="headline",
        title="Result",
        paragraphs=[sentence, _verdict(own), _about(results)],
        charts=[gain_chart(results)],
    )
