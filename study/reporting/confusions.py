"""The report's answer to: what does it confuse?"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pyarrow as pa

from study.outputs.prediction_tables import GUESS
from study.outputs.results import Results
from study.reporting.page import Cell, Chart, Section, Table
from study.reporting.style import MUTED, OTHER, OWN

NEAR = 2
"""Edges in WordNet between two classes that share their hypernym."""


def confusions_section(results: Results) -> Section | None:
    """Show how near wrong classes lie to the true ones, and the commonest confusions; None without their tables."""
    if results.tables.errors is None or results.own is None:
        return None
    errors = results.tables.errors.to_pandas()
    unseen = errors[errors.label_unseen & np.isfinite(errors.distance)]
    baseline = next((r.method for r in results.rows if r.config_id == "zero-shot-ensemble"), "")
    of_method = {
        m: unseen[unseen.method == m].groupby("distance").images.sum() for m in (results.own.method, baseline, GUESS)
    }
    shares = {method: images / images.sum() for method, images in of_method.items() if len(images)}
    means = {method: f"{(share * share.index).sum():.2f}" for method, share in shares.items()}
    near = {method: f"{100 * share[share.index <= NEAR].sum():.0f} % near" for method, share in shares.items()}
    own = errors[(errors.method == results.own.method) & errors.label_unseen]
    crossed = own[~own.predicted_unseen].images.sum() / max(own.images.sum(), 1e-9)
    paragraphs = [
        f"Of the wrongly classified images of unseen classes, {100 * crossed:.0f} % are taken for a seen class. Errors "
        f"lie {means.get(results.own.method, 'no')} edges away in WordNet on average, those of zero-shot CLIP "
        f"{means.get(baseline, 'none')}, and a guess among all wrong classes {means.get(GUESS, 'none')}. Near ones are "
        f"errors at a distance of up to {NEAR}: the predicted class is a sibling of the true one, or one of the two "
        "lies right above the other.",
    ]
    tables = []
    if results.tables.confusions is not None:
        paragraphs.append(
            "The table holds the commonest confusions of an unseen class with a seen one, nearest in WordNet first, "
            "with the images they befell, images of the class they were taken for, and the classes whose text "
            "prototypes lie nearest: an error among those is one that the texts alone suggest."
        )
        tables.append(confusions_table(results.tables.confusions))
    return Section(
        id="confusions",
        title="What does it confuse?",
        paragraphs=paragraphs,
        charts=[errors_chart(shares, {m: f"{m}: mean {means[m]}, {near[m]}" for m in shares})],
        tables=tables,
    )


def errors_chart(shares: Mapping[str, pd.Series], names: Mapping[str, str]) -> Chart:
    """Draw the shares of errors at each distance in WordNet, and `names` as the legend; both by method, own first."""
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


def confusions_table(confusions: pa.Table) -> Table:
    """List pairs of an unseen class and a seen one predicted for it. `confusions`: `PredictionTables.confusions`."""
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
