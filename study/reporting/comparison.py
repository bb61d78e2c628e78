"""Compare several studies: one ranking within each task, and mean ranks of methods over tasks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy import stats

from data_prep.errors import UserError, nearest, some_of
from data_prep.storage import locate
from study.evaluation.leaderboard import SCORE_COLUMNS, notes
from study.outputs.results import Results, read_results
from study.reporting.overview import ROW_HEADINGS, row_cells
from study.reporting.page import Cell, Chart, Section, Table, render
from study.reporting.style import MUTED, OWN

FEWEST_BENCHMARKS = 4
"""Fewest benchmarks with which a test over mean ranks means anything."""

ALPHA = 0.05
"""Level of the tests."""


@dataclass(frozen=True, kw_only=True)
class MeanRanks:
    """Ranks of methods over several tasks."""

    ranks: pd.Series
    """Mean rank of every method that was run on all tasks, best first; ties share their ranks."""
    tasks: int
    """Number of tasks."""
    friedman_p: float | None
    """p-value of Friedman's test that all methods rank alike; None with under three methods or four benchmarks."""
    critical_difference: float | None
    """Distance from which on two mean ranks differ at the 5 % level (Nemenyi's test); None where `friedman_p` is."""


BUDGET = {
    "search": ("configs", "time", "epochs", "pruning", "sampler", "objective", "seed"),
    "selection": ("criterion", "folds", "seeds", "top"),
}
"""Options, by their groups, that must be equal for a fair comparison of studies of one task."""


def load_studies(folders: Sequence[Path]) -> list[Results]:
    """Read the finished studies among `folders`; those without a leaderboard are passed over.

    Raises `UserError` if a folder is missing, if none holds a study, or if oracle studies stand among honest ones.
    """
    missing = [str(f) for f in folders if not f.exists()]
    if missing:
        there = sorted({str(f) for gone in missing for f in Path(gone).parent.glob("*/") if f.is_dir()})
        hint = nearest(missing[0], there, cutoff=0.6)
        raise UserError(f"studies must be folders that are there; missing: {some_of(missing)}{hint}")
    finished = [f for f in folders if (f / "leaderboard.parquet").exists()]
    if not finished:
        raise UserError(f"studies must be folders with a leaderboard.parquet, got {', '.join(map(str, folders))}")
    studies = [read_results(locate(f)) for f in finished]
    oracles = [s.run.name for s in studies if s.is_oracle]
    if oracles and len(oracles) < len(studies):
        raise UserError(
            f"studies must all be honest or all be oracles, one ranking cannot hold both: "
            f"{', '.join(oracles)} looked at test labels"
        )
    return studies


def write_comparison(folders: Sequence[Path], out: Path) -> str:
    """Write comparison.parquet and comparison.html into `out`; return the ranking and the page's path as text.

    Raises `UserError` as `load_studies` does.
    """
    studies = load_studies(folders)
    rows = compare(studies)
    out.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(out / "comparison.parquet")
    (out / "comparison.html").write_text(comparison_page(studies, rows))
    ranking = rows[["task", "rank", "method", "study", "test_h_mean", "h_gain"]].to_string(index=False)
    passed_over = [str(f) for f in folders if not (f / "leaderboard.parquet").exists()]
    said = [
        *([f"passed over, without a leaderboard: {some_of(passed_over)}"] if passed_over else []),
        *filter(None, [_unfinished(studies)]),
        *unequal(studies),
    ]
    return "\n".join([*said, ranking, *between_winners(studies), str(out / "comparison.html")])


def unequal(studies: Sequence[Results]) -> list[str]:
    """Say in which options studies of one task differ that a fair comparison needs equal, a line each."""
    lines = []
    for of_task in _by_task(studies):
        for group, names in BUDGET.items():
            for name in names:
                given = {study.run.name: study.run.options.by_group.get(group, {}) for study in of_task}
                values = {study: options[name] for study, options in given.items() if name in options}
                if len({str(value) for value in values.values()}) > 1:
                    shown = ", ".join(f"{value} ({study})" for study, value in values.items())
                    lines.append(f"UNEQUAL {name}: {shown}")
    return lines


def between_winners(studies: Sequence[Results]) -> list[str]:
    """Say how far the selected row of each study lies behind the best one of its task, with an interval, a line each.

    Resamples of the test images are the same in all studies of a task.
    """
    lines = []
    for of_task in _by_task(studies):
        found = [(study.run.name, h) for study in of_task if (h := _winner_h(study)) is not None]
        ranked = sorted(found, key=lambda named: -named[1][0])
        for name, h in ranked[1:]:
            gains = 100 * (ranked[0][1] - h)
            low, high = np.nanpercentile(gains[1:], [2.5, 97.5])
            lines.append(f"{ranked[0][0]} leads {name} by {gains[0]:+.2f} points of H [{low:+.2f}, {high:+.2f}]")
    return lines


def _by_task(studies: Sequence[Results]) -> list[list[Results]]:
    """Return the studies of each task that has several."""
    tasks: dict[object, list[Results]] = {}
    for study in studies:
        tasks.setdefault(study.task, []).append(study)
    return [of_task for of_task in tasks.values() if len(of_task) > 1]


def _winner_h(study: Results) -> np.ndarray | None:
    """Return H of a study's own selected row, observed and under resamples; None where the study has none."""
    own, table = study.own, study.tables.resamples
    for row in table.to_pylist() if own and table is not None else []:
        if own and row["method"] == own.method and row["config_id"] in (own.config_id, ""):
            return np.asarray(row["h"])
    return None


def _unfinished(studies: Sequence[Results]) -> str:
    """Name the interrupted studies; "" if there are none."""
    names = [study.run.name for study in studies if study.interrupted]
    return f"INTERRUPTED, so not these studies' results: {', '.join(names)}" if names else ""


def compare(studies: Sequence[Results]) -> pd.DataFrame:
    """Rank the selected rows of all methods and studies by test H within their task.

    Columns: study, task, and the fields of `Row`. A row that several studies share (zero-shot CLIP) stands there once.
    """
    lines = []
    names: dict[str, set[object]] = {}  # a name may stand for other images: then it is told apart by its features
    for study in studies:
        names.setdefault(_task_name(study), set()).add(study.task)
    for study in studies:
        task = _task_name(study)
        if len(names[task]) > 1:
            task += f", features {study.task[0][:8]}"
        for row in study.rows:
            if row.selected:
                lines.append({"study": study.run.name, "task": task, **vars(row)})
    rows = pd.DataFrame(lines)
    rows = rows.drop_duplicates(["task", "method", "config_id", "params", "test_h_mean"])
    by_task = rows.groupby("task").test_h_mean
    rows["rank"] = by_task.rank(ascending=False, method="min", na_option="bottom").astype(int)
    return rows.sort_values(["task", "rank"], ignore_index=True)


def _task_name(study: Results) -> str:
    """Return a task in words."""
    row, rotation, share = study.own or study.rows[0], study.run.options.rotation or 0, study.run.options.test_share
    unseen = "all rotations" if rotation == "all" else f"rotation {rotation}"
    return f"{row.benchmark}, {unseen}, {row.clip}" + (f", {share} of the target held out" if share else "")


def mean_ranks(rows: pd.DataFrame) -> MeanRanks | None:
    """Average ranks over tasks, of the methods that all tasks have; None with under two tasks or two methods.

    Of a method's several studies on a task the one with the best selection score counts, as within a study.
    """
    ordered = rows.assign(score=_selection_scores(rows)).sort_values("score", ascending=False)
    best = ordered.drop_duplicates(["task", "method"])
    h = best.pivot(index="task", columns="method", values="test_h_mean").dropna(axis="columns")
    tasks, methods = h.shape
    if tasks < 2 or methods < 2:
        return None
    ranks = h.rank(axis="columns", ascending=False).mean().sort_values()
    if methods < 3 or best.benchmark.nunique() < FEWEST_BENCHMARKS:
        return MeanRanks(ranks=ranks, tasks=tasks, friedman_p=None, critical_difference=None)
    q = stats.studentized_range.ppf(1 - ALPHA, methods, math.inf) / math.sqrt(2)
    return MeanRanks(
        ranks=ranks,
        tasks=tasks,
        friedman_p=float(stats.friedmanchisquare(*(h[m] for m in h)).pvalue),
        critical_difference=float(q * math.sqrt(methods * (methods + 1) / (6 * tasks))),
    )


def _selection_scores(rows: pd.DataFrame) -> pd.Series:
    """Return each row's score, or H on the folds where a method's studies of a task have different criteria."""
    columns = [SCORE_COLUMNS.get(criterion, "val_h_mean") for criterion in rows.val_criterion]
    scores = pd.Series([rows.at[i, column] for i, column in zip(rows.index, columns, strict=True)], index=rows.index)
    alike = rows.groupby(["task", "method"]).val_criterion.transform("nunique") == 1
    return scores.where(alike, rows.val_h_mean)


def comparison_page(studies: Sequence[Results], rows: pd.DataFrame) -> str:
    """Return comparison.html: the leaderboard over studies, and mean ranks. `rows`: what `compare` gave."""
    by_name = {s.run.name: s for s in studies}
    by_row = {(s.run.name, r.method, r.config_id): r for s in studies for r in s.rows}
    cells = []
    for line in rows.itertuples():
        of_row = row_cells(by_row[line.study, line.method, line.config_id], by_name[line.study])
        study = Cell(text=line.study, marks=("interrupted",) if by_name[line.study].interrupted else ())
        cells.append([Cell(text=line.task), Cell(text=str(line.rank), value=line.rank), study, *of_row])
    sections = [
        Section(
            id="leaderboard",
            title="Leaderboard",
            paragraphs=[
                f"{len(studies)} studies, {rows.task.nunique()} tasks. Each row is the configuration that its "
                "study's selection chose; rows are ranked by test H within their task (benchmark, rotation, "
                "checkpoint). Across tasks H cannot be compared."
            ],
            tables=[Table(id="rows", columns=("task", "rank", "study", *ROW_HEADINGS), rows=cells, filter=True)],
        )
    ]
    said = [*unequal(studies), *between_winners(studies)]
    if said:
        title = "Between studies of one task"
        sections.append(Section(id="winners", title=title, paragraphs=said))
    ranking = mean_ranks(rows)
    if ranking:
        sections.append(_ranks_section(ranking))
    every_row = [row for study in studies for row in study.rows]
    warning = " ".join(filter(None, [*notes(every_row, interrupted=False), _unfinished(studies)]))
    return render("Comparison of studies", sections, warning=warning)


def _ranks_section(ranking: MeanRanks) -> Section:
    """Show the mean ranks, and which of them a test tells apart."""
    words = [f"Mean rank over {ranking.tasks} tasks of the methods that were run on all of them; 1 is best."]
    if ranking.critical_difference is None:
        words.append(f"A test of the difference needs three methods and {FEWEST_BENCHMARKS} benchmarks.")
    else:
        words.append(
            f"Friedman's test that all rank alike: p = {ranking.friedman_p:.3g}. Critical difference at the 5 % level: "
            f"{ranking.critical_difference:.2f}; bars join methods whose mean ranks are closer than that, which these "
            "tasks cannot tell apart."
        )
    return Section(id="ranks", title="Mean ranks", paragraphs=words, charts=[_critical_difference_chart(ranking)])


def indistinct_groups(ranking: MeanRanks) -> list[tuple[float, float]]:
    """Return the largest runs of mean ranks, as (first, last), that lie within the critical difference."""
    values, groups = ranking.ranks.tolist(), list[tuple[float, float]]()
    for i, first in enumerate(values):
        last = max(v for v in values if v - first <= (ranking.critical_difference or 0.0))
        if values.index(last) > i and not any(last <= covered for _, covered in groups):
            groups.append((first, last))
    return groups


def _critical_difference_chart(ranking: MeanRanks) -> Chart:
    """Draw the mean ranks, with bars over those that no test tells apart."""
    figure = go.Figure()
    for i, (method, rank) in enumerate(ranking.ranks.items()):
        figure.add_scatter(
            x=[rank],
            y=[-i],
            mode="markers+text",
            marker={"size": 11, "color": OWN},
            text=[f"{method}  {rank:.2f}"],
            textposition="middle right",
            hoverinfo="skip",
        )
    for depth, (first, last) in enumerate(indistinct_groups(ranking), start=1):
        figure.add_scatter(
            x=[first, last], y=[depth * 0.6] * 2, mode="lines", line={"width": 6, "color": MUTED}, hoverinfo="skip"
        )
    span = len(ranking.ranks)
    figure.update_layout(
        showlegend=False,
        xaxis={"title": "mean rank", "range": [0.7, span + 0.35 * span]},
        yaxis={"visible": False},
    )
    return Chart(
        id="chart-ranks",
        title="Critical difference" if ranking.critical_difference else "Mean ranks",
        caption="Methods from the best mean rank down. Grey bars on top join those that cannot be told apart.",
        figure=figure,
        height=140 + 34 * span,
    )
