"""Style shared by the charts and tables of the report: colours, intervals, rows as points, lines of equal H."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from study.evaluation.leaderboard import Row
from study.evaluation.leaderboard_text import Column
from study.outputs.results import Results
from study.reporting.page import Cell

OWN, OTHER, MUTED = "#1f78c8", "#e07b1a", "#8a94a3"
"""Colours of the study's own method, of one that it is compared with, and of the background of a comparison."""

PALETTE = (OWN, OTHER, "#2a9d6f", "#c2489a", "#8a6fd1", "#b58b00", "#d1495b", "#5b8c9a", "#9c755f", "#7f9f3f")
"""Colours of methods, the study's own first."""


def whiskers(values: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Return plotly's error bars, in points, of (value, lower end, upper end) as fractions."""
    return {
        "array": [100 * (high - value) for value, _, high in values],
        "arrayminus": [100 * (value - low) for value, low, _ in values],
        "symmetric": False,
    }


def number_cells(row: Row, columns: Sequence[Column]) -> list[Cell]:
    """Return the cells of columns of numbers, sorted by the unrounded number."""
    return [Cell(text=column.text(row), value=getattr(row, column.field)) for column in columns]


def method_colours(results: Results) -> dict[str, str]:
    """Return each method's colour, the same one in all charts; the study's own method comes first."""
    methods = dict.fromkeys(([results.own.method] if results.own else []) + [r.method for r in results.rows])
    return {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(methods)}


def rows_by_method(
    results: Results, rows: Sequence[Row], x: str, y: str, *, hover: str, deviation: str | None = None
) -> go.Figure:
    """Draw rows as points in their method's colour, those that selection chose as stars.

    `x`, `y`, `deviation` (of y): fields of `Row`, fractions that the axes show in per cent. `hover`: words with %{x}
    and %{y}.
    """
    figure, colours = go.Figure(), method_colours(results)
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


def h_contours(figure: go.Figure, seen: Sequence[float], unseen: Sequence[float]) -> None:
    """Add lines of equal H across the range of the points (S and U in per cent)."""
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
