"""The report's answer to: what does it gain on seen classes, and what on unseen ones?"""

import json
from collections.abc import Sequence

import plotly.graph_objects as go
import pyarrow as pa

from study.outputs.results import Results
from study.reporting.page import Chart, Section
from study.reporting.style import MUTED, OTHER, OWN, h_contours, method_colours, rows_by_method
from study.search.records import Configuration


def seen_unseen_section(results: Results) -> Section:
    """Show accuracy on seen against accuracy on unseen classes: on the folds, on the test, and at all thresholds."""
    charts = [configurations_chart(results.configurations)] if results.configurations else []
    if results.is_scored:
        charts.append(tested_chart(results))
    if results.tables.curves is not None:
        charts.append(curves_chart(results, results.tables.curves))
    return Section(
        id="seen-unseen",
        title="Seen against unseen",
        paragraphs=["A method that favours the classes it has labels for gains S and loses U; H rewards the balance."],
        charts=charts,
    )


def configurations_chart(done: Sequence[Configuration]) -> Chart:
    """Draw all configurations by S and U on the folds, and the front of those that none beats in both."""
    judged = [c for c in done if c.metrics]
    figure = go.Figure()
    h_contours(figure, [100 * c.metrics["val_seen"] for c in judged], [100 * c.metrics["val_unseen"] for c in judged])
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


def tested_chart(results: Results) -> Chart:
    """Draw the refitted rows by S and U on the test images."""
    rows = [r for r in results.rows if r.n_seeds and r.test_seen_mean is not None and r.test_unseen_mean is not None]
    figure = rows_by_method(results, rows, "test_seen_mean", "test_unseen_mean", hover="S %{x:.2f}, U %{y:.2f}")
    h_contours(figure, [100 * (r.test_seen_mean or 0) for r in rows], [100 * (r.test_unseen_mean or 0) for r in rows])
    figure.update_layout(xaxis_title="S on the test images, %", yaxis_title="U on the test images, %")
    return Chart(
        id="chart-tested",
        title="The refitted ones on the test images",
        caption="Stars are the rows that selection chose. Dotted lines join equal H.",
        figure=figure,
        height=440,
    )


def curves_chart(results: Results, table: pa.Table) -> Chart:
    """Draw seen against unseen accuracy of each method's selected row, at every threshold between the two.

    `table`: `PredictionTables.curves`.
    """
    figure, colours = go.Figure(), method_colours(results)
    of_row = dict(list(table.to_pandas().groupby(["method", "config_id"])))
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
