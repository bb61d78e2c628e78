"""The charts of the report. Each shows numbers from a study's files; Optuna draws its own where it has them."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from study.leaderboard import Row, difference
from study.ledger import Configuration
from study.page import Chart
from study.results import Results

OWN, OTHER, MUTED = "#1f78c8", "#e07b1a", "#8a94a3"
PALETTE = (OWN, OTHER, "#2a9d6f", "#c2489a", "#8a6fd1", "#b58b00", "#d1495b", "#5b8c9a", "#9c755f", "#7f9f3f")
FEWEST_FOR_IMPORTANCES = 4
"""Completed configurations from which on importances are shown."""


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
            error_x=_whiskers([(r.h_gain, r.h_gain_lo, r.h_gain_hi)]),
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


def _whiskers(values: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Error bars, in points, of (value, lower end, upper end) as fractions."""
    return {
        "array": [100 * (high - value) for value, _, high in values],
        "arrayminus": [100 * (value - low) for value, low, _ in values],
        "symmetric": False,
    }


def _colours(results: Results) -> dict[str, str]:
    """A method's colour in all charts; the study's own comes first."""
    methods = dict.fromkeys(([results.own.method] if results.own else []) + [r.method for r in results.rows])
    return {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(methods)}


def _by_method(
    results: Results, rows: Sequence[Row], x: str, y: str, *, hover: str, deviation: str | None = None
) -> go.Figure:
    """Rows as points in their method's colour, those that selection chose as stars.

    `x`, `y`, `deviation` (of y): columns of the leaderboard; axes are in per cent. `hover`: words with %{x} and %{y}.
    """
    figure, colours = go.Figure(), _colours(results)
    for method in dict.fromkeys(r.method for r in rows):
        of_method = [r for r in rows if r.method == method]
        figure.add_scatter(
            x=[100 * getattr(r, x) for r in of_method],
            y=[100 * getattr(r, y) for r in of_method],
            error_y={
                "array": [100 * (getattr(r, deviation) or 0) for r in of_method],
                "thickness": 1,
                "color": colours[method],
            }
            if deviation
            else None,
            text=[r.config_id for r in of_method],
            name=method,
            mode="markers",
            marker={
                "color": colours[method],
                "size": [13 if r.selected else 8 for r in of_method],
                "symbol": ["star" if r.selected else "circle" for r in of_method],
            },
            hovertemplate=f"%{{text}}<br>{hover}<extra>{method}</extra>",
        )
    return figure


def tested_chart(results: Results) -> Chart:
    """Refitted rows by S and U on the test images."""
    rows = [r for r in results.rows if r.n_seeds and r.test_seen_mean is not None and r.test_unseen_mean is not None]
    figure = _by_method(results, rows, "test_seen_mean", "test_unseen_mean", hover="S %{x:.2f}, U %{y:.2f}")
    _h_contours(figure, [100 * (r.test_seen_mean or 0) for r in rows], [100 * (r.test_unseen_mean or 0) for r in rows])
    figure.update_layout(xaxis_title="S on the test images, %", yaxis_title="U on the test images, %")
    return Chart(
        id="chart-tested",
        title="The refitted ones on the test images",
        caption="Stars are the rows that selection chose. Dotted lines join equal H.",
        figure=figure,
        height=440,
    )


def honest_chart(results: Results, oracles: Sequence[Row]) -> Chart:
    """Refitted rows by H on the selection folds and on the test images, and what `oracles` chose."""
    rows = [r for r in results.rows if r.val_h_mean is not None and r.n_seeds and r.test_h_mean is not None]
    hover = "folds %{x:.2f}, test %{y:.2f}"
    figure = _by_method(results, rows, "val_h_mean", "test_h_mean", hover=hover, deviation="test_h_std")
    for row in oracles:
        assert row.test_h_mean is not None
        figure.add_hline(
            y=100 * row.test_h_mean,
            line={"dash": "dash", "width": 1, "color": MUTED},
            annotation={"text": "chosen by the test labels", "font": {"color": MUTED}},
            annotation_position="top left",
        )
    figure.update_layout(xaxis_title="H on the selection folds, %", yaxis_title="H on the test images, %")
    return Chart(
        id="chart-honest",
        title="Does honest selection pick well?",
        caption="Each refitted configuration; stars were chosen. Points that rise to the right mean that the folds "
        "rank configurations as the test images do. The two scales differ: folds hold fewer classes.",
        figure=figure,
    )


def curves_chart(results: Results) -> Chart:
    """Seen against unseen accuracy of every method's selected row, at every threshold between the two."""
    curves = results.tables["curves"].to_pandas()
    figure, colours = go.Figure(), _colours(results)
    of_row = dict(list(curves.groupby(["method", "config_id"])))
    for row in results.rows:
        if (row.method, row.config_id) not in of_row or row.test_seen_mean is None or row.test_unseen_mean is None:
            continue
        # every CLIP without training has much the same curve: one of them is shown, the others can be switched on
        visible = "legendonly" if row.config_id.startswith("zero-shot") and row.h_gain != 0 else True
        colour = colours[row.method]
        for seed, curve in of_row[row.method, row.config_id].groupby("seed"):
            figure.add_scatter(
                x=(100 * curve.seen).tolist(),
                y=(100 * curve.unseen).tolist(),
                name=f"{row.method}, area {row.test_ausuc:.3f}",
                legendgroup=row.method,
                showlegend=seed == 0,
                visible=visible,
                mode="lines",
                line={"color": colour, "width": 1.5 if row is results.own else 1},
                hovertemplate="S %{x:.2f}, U %{y:.2f}<extra>" + row.method + "</extra>",
            )
        tau = json.loads(row.params).get("tau")
        figure.add_scatter(
            x=[100 * row.test_seen_mean],
            y=[100 * row.test_unseen_mean],
            legendgroup=row.method,
            showlegend=False,
            visible=visible,
            mode="markers",
            marker={"color": colour, "size": 11, "symbol": "star"},
            hovertemplate=f"chosen{'' if tau is None else f' (tau {tau:.4g})'}: S %{{x:.2f}}, U %{{y:.2f}}"
            f"<extra>{row.method}</extra>",
        )
    figure.update_layout(xaxis_title="S, %", yaxis_title="U, %")
    return Chart(
        id="chart-curves",
        title="At every threshold between seen and unseen classes",
        caption="Test images; a line per seed, the area under it in the legend. Stars (means over seeds) are where the "
        "chosen threshold (tau, or none) puts each method: a star far from its curve's corner lost H to the choice.",
        figure=figure,
        height=460,
    )


def rotations_chart(results: Results) -> Chart:
    """H of every method's selected row in each rotation."""
    figure = go.Figure()
    for method in [r.method for r in results.rows if r.selected]:
        of_rotation = [
            next((r for r in rotation.rows if r.selected and r.method == method), None)
            for rotation in results.rotations
        ]
        figure.add_scatter(
            x=[f"rotation {i}" for i in range(len(of_rotation))],
            y=[None if r is None or r.test_h_mean is None else 100 * r.test_h_mean for r in of_rotation],
            name=method,
            mode="lines+markers",
        )
    figure.update_layout(yaxis_title="H on the test images, %")
    return Chart(
        id="chart-rotations",
        title="H of every method's selected configuration",
        caption="Lines that do not cross rank the methods alike whichever classes are unseen.",
        figure=figure,
    )


def ablation_chart(variants: Mapping[str, Row], published_h: Mapping[str, float]) -> Chart:
    """H of every variant minus that of the full model, the first one; the same of the published ones, if any."""
    names = list(variants)
    behind = [(-(r.h_behind or 0.0), -(r.h_behind_hi or 0.0), -(r.h_behind_lo or 0.0)) for r in variants.values()]
    figure = go.Figure(
        go.Bar(
            x=[100 * value for value, _, _ in behind],
            y=names,
            name="this study",
            orientation="h",
            marker={"color": OWN},
            error_x=_whiskers(behind) | {"color": MUTED},
            hovertemplate="%{x:+.2f}<extra>%{y}</extra>",
        )
    )
    both = [name for name in names if name in published_h]
    if both:
        figure.add_scatter(
            x=[100 * (published_h[name] - published_h[names[0]]) for name in both],
            y=both,
            name="published, on other data",
            mode="markers",
            marker={"symbol": "diamond", "size": 10, "color": OTHER},
            hovertemplate="%{x:+.2f}, published<extra>%{y}</extra>",
        )
    figure.update_layout(
        xaxis_title="H minus the full model's, points", yaxis={"autorange": "reversed"}, showlegend=bool(both)
    )
    return Chart(
        id="chart-ablation",
        title="H without the part",
        caption="Difference to the full model on the same test images, with 95 % intervals."
        + (" Diamonds: the same difference as published, on another data set; only their order compares." * bool(both)),
        figure=figure,
        height=120 + 36 * len(names),
    )


# --- the search -------------------------------------------------------------------------------------------------------


def _h_contours(figure: go.Figure, seen: Sequence[float], unseen: Sequence[float]) -> None:
    """Lines of equal H, in per cent, across the range of the points."""
    if not seen:
        return
    low_s, high_s = max(1.0, min(seen) - 3), min(100.0, max(seen) + 3)
    low_u, high_u = max(1.0, min(unseen) - 3), min(100.0, max(unseen) + 3)
    bottom, top = 2 * low_s * low_u / (low_s + low_u), 2 * high_s * high_u / (high_s + high_u)
    step = next(s for s in (1, 2, 5, 10, 20) if (top - bottom) / s <= 8)
    for h in np.arange(np.ceil(bottom / step) * step, top, step):
        s = np.linspace(max(low_s, h / 2 + 0.01), high_s, 80)
        u = h * s / (2 * s - h)
        inside = (u >= low_u) & (u <= high_u)
        if inside.sum() < 2:
            continue
        s, u = s[inside], u[inside]
        figure.add_scatter(
            x=s.tolist(),
            y=u.tolist(),
            mode="lines+text",
            line={"color": MUTED, "width": 1, "dash": "dot"},
            opacity=0.6,
            text=["" if i != len(s) // 2 else f"H {h:g}" for i in range(len(s))],
            textposition="middle center",
            textfont={"size": 10, "color": MUTED},
            hoverinfo="skip",
            showlegend=False,
            zorder=-1,
        )
    figure.update_xaxes(range=[low_s, high_s])
    figure.update_yaxes(range=[low_u, high_u])


def configurations_chart(done: Sequence[Configuration]) -> Chart:
    """All configurations by S and U on the folds, and the front of those that none beats in both."""
    judged = [c for c in done if c.metrics]
    figure = go.Figure()
    _h_contours(figure, [100 * c.metrics["val_seen"] for c in judged], [100 * c.metrics["val_unseen"] for c in judged])
    for state, colour in (("pruned", MUTED), ("complete", OWN)):
        of_state = [c for c in judged if c.state == state]
        figure.add_scatter(
            x=[100 * c.metrics["val_seen"] for c in of_state],
            y=[100 * c.metrics["val_unseen"] for c in of_state],
            text=[c.config_id for c in of_state],
            name=state,
            mode="markers",
            marker={"color": colour, "size": 7, "opacity": 0.75},
            hovertemplate="%{text}<br>S %{x:.2f}, U %{y:.2f}<extra></extra>",
        )
    front: list[Configuration] = []
    for c in sorted((c for c in judged if c.state == "complete"), key=lambda c: -c.metrics["val_seen"]):
        if not front or c.metrics["val_unseen"] > front[-1].metrics["val_unseen"]:
            front.append(c)
    figure.add_scatter(
        x=[100 * c.metrics["val_seen"] for c in front],
        y=[100 * c.metrics["val_unseen"] for c in front],
        name="Pareto front",
        mode="lines+markers",
        line={"color": OTHER, "width": 1.5},
        marker={"symbol": "circle-open", "size": 11, "color": OTHER},
        hoverinfo="skip",
    )
    figure.update_layout(xaxis_title="S on the folds, %", yaxis_title="U on the folds, %")
    return Chart(
        id="chart-configurations",
        title="Every configuration on the selection folds",
        caption="Pseudo-unseen against seen accuracy. Dotted lines join equal H; along the front neither accuracy can "
        "be had without giving up some of the other.",
        figure=figure,
        height=440,
    )


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


# --- the winner -------------------------------------------------------------------------------------------------------


def landscape_chart(landscape: pd.DataFrame, chosen: Mapping[str, Any]) -> Chart:
    """H over tau and lambda, and the pair that was chosen."""
    grid = landscape.pivot_table(index="tau", columns="residual_lambda", values="h")
    strengths = ["none" if x == 0 else "CLIP only" if np.isinf(x) else f"{x:.3g}" for x in grid.columns]
    figure = go.Figure(
        go.Heatmap(
            z=(100 * grid.to_numpy()).tolist(),
            x=strengths,
            y=grid.index.tolist(),
            colorscale="Viridis",
            colorbar={"title": "H, %", "thickness": 12},
            hovertemplate="lambda %{x}, tau %{y:.4g}: H %{z:.2f}<extra></extra>",
        )
    )
    finite = np.nan_to_num([*grid.columns, chosen["residual_lambda"]], posinf=1e9)
    at = int(np.abs(finite[:-1] - finite[-1]).argmin())  # a lambda that went through float32 is not quite the grid's
    figure.add_scatter(
        x=[strengths[at]],
        y=[chosen["tau"]],
        mode="markers",
        marker={"symbol": "star", "size": 15, "color": "#fff", "line": {"color": "#000", "width": 1}},
        hovertemplate="chosen on the folds: lambda %{x}, tau %{y:.4g}<extra></extra>",
        showlegend=False,
    )
    figure.update_layout(
        xaxis={"title": "lambda: CLIP's share for unseen classes", "type": "category", "nticks": 14},
        yaxis_title="tau, score from which an image counts as seen",
    )
    return Chart(
        id="chart-landscape",
        title="H over tau and lambda",
        caption="Bright is better. Nothing was chosen from this picture.",
        figure=figure,
        height=440,
    )


def errors_chart(shares: Mapping[str, pd.Series], names: Mapping[str, str]) -> Chart:
    """Shares of errors by their distance in WordNet, by method, the study's first; `names`: as the legend has them."""
    figure = go.Figure()
    for (method, share), colour in zip(shares.items(), (OWN, OTHER, MUTED), strict=False):
        figure.add_bar(
            x=share.index.tolist(),
            y=(100 * share).tolist(),
            name=names[method],
            marker={"color": colour},
            hovertemplate="%{y:.1f} % of errors at distance %{x}<extra>" + method + "</extra>",
        )
    figure.update_layout(
        xaxis_title="WordNet edges to the true class",
        yaxis_title="share of errors, %",
        legend={"orientation": "h", "y": 1.15},
    )
    return Chart(
        id="chart-errors",
        title="Are errors near misses?",
        caption="Wrong predictions for images of unseen classes by their distance from the true class.",
        figure=figure,
    )


def seconds_chart(seconds: Mapping[str, float]) -> Chart:
    """Wall time of every stage."""
    figure = go.Figure(
        go.Bar(
            x=list(seconds.values()), y=list(seconds), orientation="h", hovertemplate="%{x:.1f} s<extra>%{y}</extra>"
        )
    )
    figure.update_layout(xaxis_title="seconds", yaxis={"autorange": "reversed"})
    return Chart(
        id="chart-seconds",
        title="Time by stage",
        caption="Wall time; the search holds the baselines' searches, too.",
        figure=figure,
        height=90 + 36 * len(seconds),
    )
