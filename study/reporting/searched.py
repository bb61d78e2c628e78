"""The report's answer to: what was searched, and what mattered?"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

import search_spaces
from search_spaces import Ablation
from study.evaluation.leaderboard_text import percent
from study.outputs.results import Results, for_looking
from study.reporting.page import Cell, Chart, Section, Table
from study.reporting.seen_unseen import configurations_chart
from study.reporting.style import MUTED, OWN
from study.search.ledger import Ledger
from study.search.records import Configuration


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


FEWEST_FOR_IMPORTANCES = 4
"""Completed configurations from which on importances are shown."""


def history_chart(looking: optuna.Study) -> Chart:
    """The score over the search."""
    figure = visualization.plot_optimization_history(looking, target_name="score")
    return Chart(
        id="chart-history",
        title="How the score rose",
        caption="Selection score of every finished configuration in the order asked, and the best so far.",
        figure=figure.for_each_trace(
            lambda line: line.update(name="best so far"), {"name": "Best Value"}
        ).update_layout(xaxis_title="configuration"),
    )


def lanes_chart(done: Sequence[Configuration]) -> Chart:
    """Learning curves. All of a kind are one line with gaps: a line for each of a thousand takes a browser seconds."""
    figure = go.Figure()
    for name, colour, kept in (("stopped", MUTED, False), ("trained to the end", OWN, True)):
        curves = [(c.config_id, c.curve) for c in done if (c.state == "complete") == kept]
        points = [(i, *point) for i, curve in curves for point in (*curve, (None, None))]
        figure.add_scatter(
            x=[epoch for _, epoch, _ in points],
            y=[score for _, _, score in points],
            text=[config_id for config_id, _, _ in points],
            name=name,
            mode="lines+markers",
            marker={"size": 4, "color": colour},
            line={"width": 1, "color": colour},
            opacity=0.6,
            hovertemplate="%{text}<br>epoch %{x}: %{y:.4f}<extra></extra>",
        )
    figure.update_layout(xaxis_title="epoch", yaxis_title="score")
    return Chart(
        id="chart-curves-of-lanes",
        title="Learning curves",
        caption="Score of each configuration whenever it was judged; grey ones were stopped where they end.",
        figure=figure,
    )


def knob_charts(looking: optuna.Study) -> list[Chart]:
    """What the knobs did to the score, where there is more than one completed configuration."""
    done = [t for t in looking.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    knobs = {name for t in done for name in t.params}
    if len(done) < 2 or not knobs:
        return []
    charts = [
        Chart(
            id="chart-parallel",
            title="Parallel coordinates",
            caption="A line per completed configuration; drag along an axis to keep those that pass there.",
            figure=visualization.plot_parallel_coordinate(looking, target_name="score"),
            width=90 * (len(knobs) + 1),
            height=420,
        ),
        Chart(
            id="chart-slices",
            title="Score over each knob",
            caption="Completed configurations; a knob whose best values crowd at one end asks for a wider range there. "
            "Dark ones were tried late.",
            figure=visualization.plot_slice(looking, target_name="score"),
            width=210 * len(knobs),
            height=340,
        ),
    ]
    for chart in charts:
        chart.figure.update_layout(width=None, height=None, margin={"l": 40})
    if len(done) >= FEWEST_FOR_IMPORTANCES and len({t.value for t in done}) > 1:
        charts.insert(0, _importances_chart(done, knobs))
    return charts


def _importances_chart(done: Sequence[FrozenTrial], knobs: Collection[str]) -> Chart:
    importances = importances_of(done)
    absent = ", ".join(sorted(knobs - importances.keys()))
    figure = go.Figure(
        go.Bar(
            x=[100 * share for share in importances.values()],
            y=list(importances),
            orientation="h",
            marker={"color": OWN},
            hovertemplate="%{x:.1f} %<extra>%{y}</extra>",
        )
    )
    figure.update_layout(xaxis_title="share of the score's variance, %", yaxis={"autorange": "reversed"})
    return Chart(
        id="chart-importances",
        title="What mattered",
        caption="How much of the variance of the score over the searched ranges each knob explains alone (fANOVA, "
        f"Hutter et al., 2014), by a random forest fitted to {len(done)} completed configurations: with few it is a "
        "hint, not a finding." + (f" Not every configuration has {absent}: not judged." if absent else ""),
        figure=figure,
        height=90 + 26 * len(importances),
    )


def importances_of(done: Sequence[FrozenTrial]) -> dict[str, float]:
    """Each knob's share, in [0, 1], of the score's variance, largest first; only knobs that all trials have.

    Optuna's forest weighs a range evenly: knobs that were drawn on a logarithmic scale go in as logarithms.
    """

    def unlogged(trial: FrozenTrial) -> FrozenTrial:
        params, distributions = dict(trial.params), dict(trial.distributions)
        for name, range_ in trial.distributions.items():
            if isinstance(range_, FloatDistribution | IntDistribution) and range_.log:
                params[name] = math.log(trial.params[name])
                distributions[name] = FloatDistribution(math.log(range_.low), math.log(range_.high))
        return create_trial(value=trial.value, params=params, distributions=distributions)

    study = optuna.create_study(direction="maximize")
    study.add_trials([unlogged(t) for t in done])
    evaluator = FanovaImportanceEvaluator(seed=0)
    return get_param_importances(study, evaluator=evaluator, normalize=False)


REFRESH_S = 30
"""Seconds after which the report of a running study is written, and loads itself, again."""


def running_sections(ledger: Ledger) -> list[Section]:
    """What there is to see while a search runs."""
    done, best = ledger.finished(), ledger.best(10)
    counts = {s: sum(c.state == s for c in done) for s in ("complete", "pruned", "failed")}
    words = f"{len(done)} configurations: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)
    return [
        Section(
            id="headline",
            title="The search is running",
            paragraphs=[
                words if done else "No configuration has finished yet.",
                f"This page loads itself again every {REFRESH_S} s.",
            ],
            charts=[configurations_chart(done), history_chart(for_looking(ledger)), lanes_chart(done)] if best else [],
            tables=[best_table(best)] if best else [],
        )
    ]


def search_section(results: Results) -> Section | None:
    if results.looking is None or not any(c.state == "complete" for c in results.configurations):
        return None
    done, identity = results.configurations, results.identity
    states = {s: sum(c.state == s for c in done) for s in ("complete", "pruned", "failed")}
    space = search_spaces.load(identity["space"]) if identity["space"] in search_spaces.names() else None
    why = {} if space is None or isinstance(space, Ablation) else {k.name: k.why for k in space.knobs}
    tables = [knobs_table(identity["knobs"], json.loads(results.own.params) if results.own else {}, why)]
    failed = [c for c in done if c.state == "failed"]
    if failed:
        tables.append(failures_table(failed))
    others = ", ".join(f"{name} ({len(found)})" for name, found in results.baselines.items() if found)
    return Section(
        id="search",
        title="What was searched, and what mattered",
        paragraphs=[
            f"{len(done)} configurations of {len(identity['knobs'])} knobs, {identity['epochs']} epochs each: "
            f"{states['complete']} trained to the end, {states['pruned']} stopped early because half of the others "
            f"were better, {states['failed']} failed. Sampler: {identity['sampler']}."
            + (f" Baselines were searched with the same budget: {others}." if others else "")
        ],
        charts=[history_chart(results.looking), lanes_chart(done), *knob_charts(results.looking)],
        tables=tables,
    )
