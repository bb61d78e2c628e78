"""The report's answers to: what was reached? and: how does each configuration rank?"""

import json
import shlex

import numpy as np
import plotly.graph_objects as go

from data_prep.storage import join
from study.evaluation.leaderboard import ORACLE, Row
from study.evaluation.leaderboard_text import (
    ALL,
    AUSUC,
    BEHIND,
    H_GAIN,
    KNOWN,
    NEW_H,
    RANK,
    SOURCE,
    UNKNOWN,
    VAL_H,
    H,
    S,
    U,
    difference,
    percent,
)
from study.outputs.adapter_files import ADAPTERS, ENSEMBLE, SELECTED
from study.outputs.provenance import CONFIGS
from study.outputs.results import Results
from study.reporting.page import Cell, Chart, Section, Table
from study.reporting.style import MUTED, OWN, number_cells, whiskers

# --- what was reached -------------------------------------------------------------------------------------------------


def headline_section(results: Results) -> Section:
    """Say in three sentences what the study's own method reached, whether that is a gain, and how it was measured."""
    own = results.own
    if own is None:
        return Section(id="headline", title="Result", paragraphs=["No configuration could be scored."])
    if own.test_h_mean is None:
        return Section(
            id="headline",
            title="Result",
            paragraphs=[_unscored(own), _alike(own), _about(results)],
            commands=_commands(own, results),
        )
    over = f"mean over {len(results.rotations)} rotations of the unseen classes, " if results.rotations else ""
    sentence = (
        f"{own.method} with the configuration that selection chose reaches H = {percent(own.test_h_mean)} on "
        f"{own.benchmark}, {difference(own.h_gain)} points over zero-shot CLIP ({over}95 % interval "
        f"{difference(own.h_gain_lo)} to {difference(own.h_gain_hi)})."
    )
    return Section(
        id="headline",
        title="Result",
        paragraphs=[
            sentence,
            _verdict(results),
            _on_new(own),
            _worth(results),
            _alike(own),
            _together(results),
            _rival(results),
            _about(results),
        ],
        commands=_commands(own, results),
        charts=[gain_chart(results)],
    )


def _unscored(own: Row) -> str:
    """Say what is known of a choice where no target image has a label."""
    score = own.score
    chosen = f" Its score in selection ({score.criterion}) is {percent(score.value)}." if score else ""
    return (
        f"No target image has a label, so nothing is scored. {own.method} with configuration {own.config_id} is what "
        f"selection chose.{chosen} Its predictions for all target images are in predictions.parquet, and its adapter "
        "gives the same."
    )


def _commands(own: Row, results: Results) -> dict[str, str]:
    """Return how to use what was selected, and how to make it again; of several rotations each has its own page."""
    if results.rotations:
        return {}

    def classify(adapter: str) -> str:
        folder = shlex.quote(join(results.folder, f"{ADAPTERS}/{adapter}"))
        return f"python study/predict.py IMAGES --adapter {folder}"

    commands = {"Classify images with it:": classify(SELECTED)}
    if _ensemble(results):
        commands["Classify images with all refitted configurations, which vote:"] = classify(ENSEMBLE)
    return commands | {"Make its row again:": rerun_command(own, results)}


def _verdict(results: Results) -> str:
    """Say whether the gain is one, by its interval, and what the interval does not say."""
    own = results.own
    if own is None or own.h_gain_lo is None or own.h_gain_hi is None:
        return ""
    limits = f"The interval is about images of these classes in this target. {_spread(results)}"
    if own.h_gain_lo > 0:
        return f"The interval excludes zero: with other images like these there would very likely be a gain. {limits}"
    if own.h_gain_hi < 0:
        return f"The interval lies below zero: zero-shot CLIP, without any training, is better here. {limits}"
    return f"The interval includes zero: the method cannot be told from zero-shot CLIP here. {limits}"


def _spread(results: Results) -> str:
    """Say how far H varies over seeds and, where several were run, over splits of the classes."""
    own, said = results.own, list[str]()
    if own and own.n_seeds > 1:
        said.append(f"over its {own.n_seeds} seeds H varies by ± {percent(own.test_h_std)}")
    of_splits = [part.own.test_h_mean for part in results.rotations if part.own and part.own.test_h_mean is not None]
    if len(of_splits) > 1:
        low, high = percent(min(of_splits)), percent(max(of_splits))
        said.append(f"over the {len(of_splits)} splits of the classes from {low} to {high}")
    rest = "other classes and domains" if len(of_splits) < 2 else "other domains"
    words = ", and ".join(said)
    sentence = f"{words[:1].upper()}{words[1:]}. " if words else ""
    return f"{sentence}Nothing here is about {rest}."


def _on_new(own: Row) -> str:
    """Say what the row reaches on images that the study never saw, where some were held out."""
    if own.new_h_mean is None:
        return ""
    return (
        f"On target images that neither training nor selection saw it reaches H = {percent(own.new_h_mean)}, "
        f"{difference(own.new_h_gain)} points over zero-shot CLIP on the same images (95 % interval "
        f"{difference(own.new_h_gain_lo)} to {difference(own.new_h_gain_hi)})."
    )


def _worth(results: Results) -> str:
    """Say what the search was worth: the selected row against the space's defaults, which nobody searched."""
    own = results.own
    defaults = next((r for r in results.rows if own and r.method == f"{own.method}, defaults"), None)
    if defaults is None or defaults.h_behind is None:
        return ""
    points = difference(defaults.h_behind, defaults.h_behind_lo, defaults.h_behind_hi)
    return (
        f"Searching was worth {points} points of H: the default configuration reaches {percent(defaults.test_h_mean)}."
    )


def _alike(own: Row) -> str:
    """Say how many other choices selection could not tell from its own."""
    if not own.val_alike:
        return ""
    return (
        f"Of all other choices of a configuration and a head, {100 * own.val_alike:.0f} % agree with the consensus as "
        "well as the selected one, within the noise of its images. Of their heads, its own agrees best in the mean of "
        "all configurations. The consensus row uses them all."
    )


def _ensemble(results: Results) -> Row | None:
    """Return the row of what the own method's refits predict together, where they vote."""
    return next((r for r in results.rows if r.method == f"{results.run.own_method}, ensemble"), None)


def _together(results: Results) -> str:
    """Say what the refits reach together, which are the better adapter in some studies and the worse one in others."""
    row = _ensemble(results)
    if row is None or row.h_behind is None or row.h_behind_lo is None or row.h_behind_hi is None:
        return ""
    points = difference(-row.h_behind, -row.h_behind_hi, -row.h_behind_lo)
    return (
        f"Where all refitted configurations vote, they reach H = {percent(row.test_h_mean)}: {points} points over the "
        "selected one alone. They take as many times longer."
    )


def _rival(results: Results) -> str:
    """Say how the method stands against the best of its baselines, and plainly so where it loses."""
    rivals = [r for r in results.rows if r.selected and r.n_seeds and not of_own_method(r, results)]
    best = max(rivals, key=lambda r: r.test_h_mean or 0.0, default=None)
    if best is None or results.own is None or best.h_behind is None or best.h_behind_lo is None:
        return ""
    method, points = results.own.method, difference(best.h_behind, best.h_behind_lo, best.h_behind_hi)
    if best.h_behind < 0:
        sure = "" if best.h_behind_hi is not None and best.h_behind_hi < 0 else ", though the interval includes zero"
        return f"{method} loses to {best.method}, the best baseline: {points} points{sure}."
    sure = "" if best.h_behind_lo > 0 else "; the interval includes zero, so the two cannot be told apart here"
    return f"{method} leads the best baseline, {best.method}, by {points} points{sure}."


def of_own_method(row: Row, results: Results) -> bool:
    """Return whether a row is of the study's own method: itself, a variant, its defaults or its consensus."""
    own = results.run.own_method
    return row.method == own or row.method.startswith((f"{own}: ", f"{own}, "))


def _about(results: Results) -> str:
    """Say in short what was done, for a reader who has not seen the project."""
    parts, own = results.rotations or [results], results.own
    configurations, search, data = sum(len(r.configurations) for r in parts), parts[0].search, results.run.data
    words = "Given configurations were scored"
    if configurations:
        knobs = len(search.space.knobs) if search else 0
        words = f"{configurations} configurations of its {knobs} knobs were compared"
    if data:
        words += (
            f" for learning {data.seen_classes} seen classes from {data.source_images} labelled images and recognising "
            f"{data.unseen_classes} more classes of which only the names are known"
        )
    if configurations and not results.is_oracle:
        words += ", and the choice among them was made without a label of an unseen class or a test image"
    sees = results.run.criterion not in ("", "h")
    if not results.is_oracle:
        words += TRANSDUCTIVE if sees else ". Neither training nor selection saw a test image"
        if sees and own and own.test_h_mean is not None:
            words += ": the numbers say how well these images are labelled"
    if results.run.scorings > 1:
        words += f". The test images were scored {results.run.scorings} times, since the study was extended"
    return f"{words}. H is the harmonic mean of the accuracies on seen and on unseen classes."


TRANSDUCTIVE = ". Training and selection saw the unlabelled test images themselves (transductive)"
"""What is said of a study whose method may look at the target."""


def gain_chart(results: Results) -> Chart:
    """Draw the gain of each method's selected row over zero-shot CLIP, with its interval."""
    shown = [(r.method, r) for r in results.rows if r.selected and r.h_gain is not None]
    refitted = [r for r in results.rows if results.own and r.method == results.own.method and r.h_gain is not None]
    if len(refitted) > 1:
        shown.append((f"best of {len(refitted)} refitted*", max(refitted, key=lambda r: r.test_h_mean or 0.0)))
    note = (
        " * Chosen by its test result: what a perfect choice would have been, no result." if len(refitted) > 1 else ""
    )
    shown.sort(key=lambda named: named[1].h_gain or 0.0)
    figure = go.Figure()
    for name, r in shown:
        assert r.h_gain is not None and r.h_gain_lo is not None and r.h_gain_hi is not None
        figure.add_scatter(
            x=[100 * r.h_gain],
            y=[name],
            error_x=whiskers([(r.h_gain, r.h_gain_lo, r.h_gain_hi)]),
            mode="markers",
            marker={
                "size": 11,
                "color": OWN if r is results.own and name == r.method else MUTED,
                "symbol": "circle" if name == r.method else "circle-open",
            },
            hovertemplate=f"{difference(r.h_gain, r.h_gain_lo, r.h_gain_hi)}<extra>{name}</extra>",
        )
    figure.update_layout(showlegend=False, xaxis_title="points of H")
    return Chart(
        id="chart-gain",
        title="Gain over zero-shot CLIP",
        caption=f"Each method's selected configuration; bars are 95 % intervals over test images.{note}",
        figure=figure,
        height=110 + 42 * len(shown),
    )


# --- the leaderboard --------------------------------------------------------------------------------------------------

_NUMBERS, _MORE_NUMBERS = (H, H_GAIN, BEHIND, NEW_H, S, U), (VAL_H, AUSUC, KNOWN, UNKNOWN, ALL)
"""Numbers that most readers ask for, and the others."""

MEANINGS = {
    H.heading: "2SU / (S + U) on the test images, mean over seeds; ± is their deviation",
    H_GAIN.heading: "H minus that of zero-shot CLIP (ensemble) on the same images, with its interval",
    BEHIND.heading: "H of the study's own selected row minus this row's, with its interval",
    NEW_H.heading: "H on target images that neither training nor selection saw",
    S.heading: "Mean accuracy of the seen classes",
    U.heading: "Mean accuracy of the unseen classes",
    VAL_H.heading: "H on the folds of seen classes, without a test label; ± over folds",
    AUSUC.heading: "Area under U against S over every threshold between seen and unseen classes",
    KNOWN.heading: "Accuracy over images of seen classes",
    UNKNOWN.heading: "Accuracy over images of unseen classes",
    ALL.heading: "Accuracy over all images",
    SOURCE.heading: "Who measured it",
}
"""What the columns mean."""

ROW_HEADINGS = (
    "method",
    *(column.heading for column in _NUMBERS),
    "configuration",
    *(column.heading for column in _MORE_NUMBERS),
    SOURCE.heading,
)
"""Headings of the cells that `row_cells` gives."""


def leaderboard_section(results: Results) -> Section:
    """Show all rows of the leaderboard."""
    return Section(
        id="leaderboard",
        title="Leaderboard",
        paragraphs=[
            "S and U are mean accuracies per seen and unseen class on the test images, H = 2SU / (S + U), all in "
            "per cent; ± is the deviation over seeds (of val H, over folds). Gains are over zero-shot CLIP, with "
            "95 % intervals from resampling test images in pairs. val H is what the folds of seen classes gave. "
            "Rest on a heading to read what it means, click it to sort; click a configuration to see its values and "
            "the command that makes its row again."
        ],
        tables=[leaderboard_table(results)],
    )


def compare_section(results: Results) -> Section | None:
    """Let the reader compare any two rows, on the same resamples of the test images; None without them."""
    if results.tables.resamples is None:
        return None
    rows = results.tables.resamples.to_pylist()
    own = next(
        (
            r
            for r in rows
            if results.own and r["config_id"] in (results.own.config_id, "") and r["method"] == results.own.method
        ),
        rows[0],
    )
    rows = [own, *(r for r in rows if r is not own)]
    return Section(
        id="compare",
        title="How do two rows compare?",
        paragraphs=[
            f"Choose any two. The interval comes from {len(own['h']) - 1} resamples of the test images, the same for "
            "all rows. It says nothing of other classes or seeds."
        ],
        resamples={f"{r['method']} {r['config_id']}".strip(): np.asarray(r["h"], dtype="<f4").tobytes() for r in rows},
    )


def leaderboard_table(results: Results) -> Table:
    """List the rows, with their unrounded numbers behind the shown ones; without columns that no row has."""
    headings = (RANK.heading, *ROW_HEADINGS)
    rows = [[Cell(text=RANK.text(r), value=r.rank or None), *row_cells(r, results)] for r in results.rows]
    filled = [i for i in range(len(headings)) if any(cells[i].text for cells in rows)]
    return Table(
        id="rows",
        columns=tuple(headings[i] for i in filled),
        fixed=1,
        brief=1 + sum(headings[i] in (RANK.heading, "method", *(c.heading for c in _NUMBERS)) for i in filled),
        meanings=MEANINGS,
        rows=[[cells[i] for i in filled] for cells in rows],
        strong=frozenset(i for i, row in enumerate(results.rows) if row is results.own),
        filter=True,
    )


def row_cells(row: Row, results: Results) -> list[Cell]:
    """Return the cells of one row under `ROW_HEADINGS`: all but its rank."""
    marks = {
        ORACLE: row.select == ORACLE,
        "selected": row.selected,
        "Pareto": row.pareto,
        "published": not row.n_seeds,
        "baseline": row.n_seeds and not of_own_method(row, results),
    }
    params = json.dumps(json.loads(row.params), indent=1) if row.params != "{}" else ""
    code = "\n\n".join(filter(None, (rerun_command(row, results), params)))
    return [
        Cell(text=row.method, marks=tuple(mark for mark, holds in marks.items() if holds)),
        *number_cells(row, _NUMBERS),
        Cell(text=row.config_id, value=row.config_id, code=code),
        *number_cells(row, _MORE_NUMBERS),
        Cell(text=SOURCE.text(row)),
    ]


def rerun_command(row: Row, results: Results) -> str:
    """Return the command that makes a row again; "" for published rows and means over rotations."""
    if not row.n_seeds or results.rotations:
        return ""
    if row.params == "{}":  # zero-shot CLIP stands in every study
        return results.run.command
    return f"python study/run.py --rerun {shlex.quote(join(results.folder, f'{CONFIGS}/{row.config_id}.json'))}"
