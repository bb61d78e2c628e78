"""A self-contained page of sections: paragraphs, charts, tables that sort and filter. It never touches the network."""

import json
import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.offline

SIGNIFICANT = 6
"""Digits kept of numbers in charts: they are for looking, the files have the rest."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plotly figure and the words around it."""

    id: str
    """HTML id, unique on the page."""
    title: str
    """What it shows."""
    caption: str
    """How to read it."""
    figure: go.Figure
    """Its colours of text, axes and background are those of the page, light or dark."""
    height: int = 380
    """Pixels."""
    width: int | None = None
    """Pixels if it needs more than a phone has: it then scrolls sideways."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str = ""
    """What is shown."""
    value: float | str | None = None
    """What it is sorted by; a number is the unrounded one."""
    marks: tuple[str, ...] = ()
    """Words set apart behind the text."""
    code: str = ""
    """Opens on a click: a command or a configuration."""
    images: tuple[bytes, ...] = ()
    """Small WebP images."""
    image_text: str = ""
    """What the images show, for those who do not see them."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose headings sort and which filters by words."""

    id: str
    """HTML id, unique on the page."""
    columns: tuple[str, ...]
    """Headings."""
    rows: Sequence[Sequence[Cell]]
    """Cells in the order of the headings."""
    strong: frozenset[int] = frozenset()
    """Rows to stand out."""
    filter: bool = False
    """Whether a field to filter by is shown."""

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it holds numbers."""
        return [any(isinstance(cell.value, int | float) for cell in column) for column in zip(*self.rows, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One question and its answer."""

    id: str
    """HTML id, for the contents."""
    title: str
    """The heading."""
    paragraphs: Sequence[str] = ()
    """Plain text above the rest."""
    charts: Sequence[Chart] = ()
    """Charts, side by side where there is room."""
    tables: Sequence[Table] = ()
    """Tables below them."""


def render(title: str, sections: Sequence[Section], *, warning: str = "", refresh_s: int | None = None) -> str:
    """The page as HTML. `warning` stands above all; `refresh_s`: how often it loads itself again."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["webp"] = lambda image: f"data:image/webp;base64,{b64encode(image).decode()}"
    figures = {chart.id: _short(json.loads(chart.figure.to_json())) for s in sections for chart in s.charts}
    return environment.get_template("page.html.j2").render(
        title=title,
        sections=sections,
        warning=warning,
        refresh_s=refresh_s,
        # "<" may end the script it stands in
        figures=json.dumps(figures, separators=(",", ":")).replace("<", "\\u003c"),
        plotly=plotly.offline.get_plotlyjs() if figures else "",
    )


def _short(value: Any) -> Any:
    """The same JSON with fewer digits, and without plotly's default theme, which is long."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items() if k != "template"}
    if isinstance(value, list):
        return [_short(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT}g}") if math.isfinite(value) else None
    return value
