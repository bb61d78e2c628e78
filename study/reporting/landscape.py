"""The report's answer to: how much does the choice of tau and lambda matter?"""

import json
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from study.outputs.results import Results
from study.reporting.page import Chart, Section


def landscape_section(results: Results) -> Section | None:
    """Show H over both knobs; None where the study's method does not have them, or nothing was selected."""
    table, own = results.tables.landscape, results.own
    if table is None or own is None:
        return None
    return Section(
        id="landscape",
        title="Tau and lambda",
        paragraphs=[
            "H of the selected configuration (first seed) on the test images at every threshold tau and every residual "
            "strength lambda. The star is the pair that was chosen on the folds of seen classes, before these images "
            "were scored: on a broad plateau around it the choice matters little."
        ],
        charts=[landscape_chart(table, json.loads(own.params))],
    )


def landscape_chart(table: pa.Table, chosen: Mapping[str, float]) -> Chart:
    """Draw H over tau and lambda, and the pair that was chosen. `table`: `PredictionTables.landscape`."""
    grid = table.to_pandas().pivot_table(index="tau", columns="residual_lambda", values="h")
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
