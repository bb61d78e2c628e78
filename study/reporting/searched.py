"""The report's answer to: what was searched, and what mattered?"""

import json
import math
from collections.abc import Collection, Mapping, Sequence

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from plotly.subplots import make_subplots

import search_spaces
from search_spaces import Ablation, Value
from study.outputs.results import Results
from study.reporting.page import Cell, Chart, Section, Table
from study.reporting.style import MUTED, OWN
from study.search.records import Configuration, KnobRange

SLICES_IN_A_ROW = 4
"""Small charts of the score over a knob side by side."""

FEWEST_FOR_IMPORTANCES = 4
"""Completed configurations from which on importances are shown."""


def search_section(results: Results) -> Section | None:
    """Show the search of the study's own method; None where no configuration was trained to the end."""
    search = results.search
    if search is None or not any(c.state == "complete" for c in search.configurations):
        return None
    done, searched = search.configurations, search.space
    states = {s: sum(c.state == s for c in done) for s in ("complete", "pruned", "failed")}
    space = search_spaces.load(searched.name) if searched.name in search_spaces.names() else None
    why = {} if space is None or isinstance(space, Ablation) else {k.name: k.why for k in space.knobs}
    tables = [knobs_table(searched.knobs, json.loads(results.own.params) if results.own else {}, why)]
    failed = [c for c in done if c.state == "failed"]
    if failed:
        tables.append(failures_table(failed))
    others = ", ".join(f"{name} ({len(found)})" for name, found in results.baselines.items() if found)
    return Section(
        id="search",
        title="What was searched, and what mattered",
        paragraphs=[
            f"{len(done)} configurations of {len(searched.knobs)} knobs, {searched.epochs} epochs each: "
            f"{states['complete']} trained to the end, {states['pruned']} stopped early because half of the others "
            f"were better, {states['failed']} failed. Sampler: {searched.sampler}."
            + (f" Baselines were searched with the same budget: {others}." if others else "")
        ],
        charts=[history_chart(search.optuna_study), lanes_chart(done), *knob_charts(search.optuna_study)],
        tables=tables,
    )


def history_chart(study: optuna.Study) -> Chart:
    """Draw the score of each configuration, and the best so far. `study`: see `score_study`."""
    figure = visualization.plot_optimization_history(study, target_name="score")
    return Chart(
        id="chart-history",
        title="How the score rose",
        caption="Selection score of every finished configuration in the order asked, and the best so far.",
        figure=figure.for_each_trace(
            lambda line: line.update(name="best so far"), {"name": "Best Value"}
        ).update_layout(xaxis_title="configuration"),
    )


def lanes_chart(done: Sequence[Configuration]) -> Chart:
    """Draw learning curves. All of a kind are one line with gaps: with a thousand lines a browser takes seconds."""
    figure = go.Figure()
    for name, colour, complete in (("stopped", MUTED, False), ("trained to the end", OWN, True)):
        curves = [(c.config_id, c.curve) for c in done if (c.state == "complete") == complete]
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


def knob_charts(study: optuna.Study) -> list[Chart]:
    """Draw the score over the knobs; no chart under two completed configurations. `study`: see `score_study`."""
    done = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    knobs = {name for t in done for name in t.params}
    if len(done) < 2 or not knobs:
        return []
    charts = [
        Chart(
            id="chart-parallel",
            title="Parallel coordinates",
            caption="A line per completed configuration; drag along an axis to keep those that pass there.",
            figure=visualization.plot_parallel_coordinate(study, target_name="score"),
            width=90 * (len(knobs) + 1),
            height=420,
        ),
        Chart(
            id="chart-slices",
            title="Score over each knob",
            caption="Completed configurations; a knob whose best values crowd at one end asks for a wider range there. "
            "Dark ones were tried late.",
            figure=_slices(done, sorted(knobs)),
            width=640,
            height=40 + 200 * -(-len(knobs) // SLICES_IN_A_ROW),
        ),
    ]
    charts[0].figure.update_layout(width=None, height=None, margin={"l": 40})
    if len(done) >= FEWEST_FOR_IMPORTANCES and len({t.value for t in done}) > 1:
        charts.insert(0, _importances_chart(done, knobs))
    return charts


def _slices(done: Sequence[FrozenTrial], knobs: Sequence[str]) -> go.Figure:
    """Draw the score over each knob, in rows of small charts with one scale of the score."""
    rows = -(-len(knobs) // SLICES_IN_A_ROW)
    figure = make_subplots(rows=rows, cols=SLICES_IN_A_ROW, shared_yaxes=True, vertical_spacing=0.35 / rows)
    for i, name in enumerate(knobs):
        row, column = divmod(i, SLICES_IN_A_ROW)
        having = [t for t in done if name in t.params]
        ranges = having[0].distributions[name]
        figure.add_scatter(
            x=[str(t.params[name]) if isinstance(ranges, CategoricalDistribution) else t.params[name] for t in having],
            y=[t.value for t in having],
            mode="markers",
            marker={"size": 5, "color": [t.number for t in having], "colorscale": "Blues", "cmin": -len(done)},
            hovertemplate="%{x}: %{y:.4f}<extra></extra>",
            row=row + 1,
            col=column + 1,
        )
        is_log = getattr(ranges, "log", False)
        figure.update_xaxes(title={"text": name, "standoff": 2}, row=row + 1, col=column + 1)
        if is_log:
            figure.update_xaxes(type="log", row=row + 1, col=column + 1)
    figure.update_layout(showlegend=False)
    return figure


def _importances_chart(done: Sequence[FrozenTrial], knobs: Collection[str]) -> Chart:
    """Draw each knob's share of the score's variance. `knobs`: all that occur in `done`."""
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
    """Return each knob's share, in [0, 1], of the score's variance, largest first; only knobs that all trials have.

    Optuna's forest weighs a range evenly: knobs that were drawn on a logarithmic scale go in as logarithms.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # scikit-learn: most of a second

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


def _chosen(name: str, knob: KnobRange, chosen: Mapping[str, Value]) -> str:
    """Return the value that was chosen for a knob, – where it has no effect beside the others."""
    if name not in chosen:
        return ""
    if knob.when and chosen.get(knob.when[0]) not in knob.when[1]:
        return "–"
    value = chosen[name]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def knobs_table(knobs: Mapping[str, KnobRange], chosen: Mapping[str, Value], why: Mapping[str, str]) -> Table:
    """List the knobs with their ranges, the values chosen (– where a knob has no effect), and the reasons."""

    def values(knob: KnobRange) -> str:
        if knob.choices:
            return ", ".join(map(str, knob.choices))
        return f"{knob.low:g} to {knob.high:g}{', log scale' if knob.log else ''}"

    return Table(
        id="knobs",
        columns=("knob", "searched", "chosen", "why it is searched"),
        rows=[
            [
                Cell(text=name),
                Cell(text=values(knob)),
                Cell(text=_chosen(name, knob, chosen)),
                Cell(text=why.get(name, "")),
            ]
            for name, knob in knobs.items()
        ],
    )


def failures_table(failed: Sequence[Configuration]) -> Table:
    """List configurations that failed, with the reasons."""
    return Table(
        id="failures",
        columns=("configuration that failed", "reason"),
        rows=[[configuration_cell(c), Cell(text=c.reason)] for c in failed],
    )


def configuration_cell(c: Configuration) -> Cell:
    """Return the configuration's id, which opens its values."""
    return Cell(text=c.config_id, value=c.config_id, code=json.dumps(c.params, indent=1))
