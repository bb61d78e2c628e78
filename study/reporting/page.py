"""Render a page of sections (paragraphs, charts, tables that sort and filter) as one file that needs no network."""

import json
import math
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.offline

SIGNIFICANT = 6
"""Significant digits of numbers in charts: enough for the eye, the files have the others."""

STALE_S = 600
"""Age in seconds from which on a page no longer loads itself again; a running search writes it every two minutes."""

REPORT = "report.html"
"""Page in a study's folder: of the running search first, of the finished study in the end."""

POLICY = "policy of this page"
"""Stands in the template for the policy, which is known once the page is written."""

COMPILES = frozenset({"parcoords"})
"""Traces that plotly.js draws with code that it writes at run time; the policy of a page without them forbids that."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plotly figure and the words around it."""

    id: str
    """HTML id, unique on the page."""
    title: str
    """Heading above the chart."""
    caption: str
    """How to read the chart."""
    figure: go.Figure
    """The figure; the page sets its colours of text, axes and background, light or dark."""
    height: int = 380
    """Height in pixels."""
    width: int | None = None
    """Least width in pixels, if the chart needs more than a phone has: it then scrolls sideways."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str = ""
    """Text of the cell."""
    value: float | str | None = None
    """Value that the column is sorted by; a number is the unrounded one."""
    marks: tuple[str, ...] = ()
    """Words set apart behind the text."""
    code: str = ""
    """Command or configuration that a click on the text opens."""
    images: tuple[bytes, ...] = ()
    """Small WebP images."""
    image_text: str = ""
    """Description of the images, for readers who do not see them."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose headings sort and which filters by words."""

    id: str
    """HTML id, unique on the page."""
    columns: tuple[str, ...]
    """Headings of the columns."""
    rows: Sequence[Sequence[Cell]]
    """Cells in the order of the headings."""
    strong: frozenset[int] = frozenset()
    """Indices of rows that stand out."""
    filter: bool = False
    """Whether the table has a field to filter rows by words."""
    fixed: int | None = None
    """Index of the column that stays while the others scroll sideways."""
    brief: int = 0
    """Columns that show at first, the others behind a switch; 0: all. Only with `filter`."""
    meanings: Mapping[str, str] = field(default_factory=dict)
    """What columns mean, by their headings, shown where the pointer rests."""

    @property
    def meaning(self) -> Mapping[str, str]:
        """Return the meaning of each column, "" where nothing needs to be said."""
        return {column: self.meanings.get(column, "") for column in self.columns}

    def kind(self, column: int) -> str:
        """Return the classes of a column's cells."""
        more = self.brief and column >= self.brief
        return " ".join(name for name, holds in (("fixed", column == self.fixed), ("more", more)) if holds)

    @property
    def numeric(self) -> list[bool]:
        """Say for each column whether it holds numbers."""
        return [any(isinstance(cell.value, int | float) for cell in column) for column in zip(*self.rows, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One question and its answer."""

    id: str
    """HTML id, unique on the page."""
    title: str
    """Heading of the section, and its entry in the contents."""
    paragraphs: Sequence[str] = ()
    """Plain text above charts and tables."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """Command lines by what they do, below the paragraphs."""
    charts: Sequence[Chart] = ()
    """Charts, side by side where there is room."""
    tables: Sequence[Table] = ()
    """Tables below them."""
    resamples: Mapping[str, bytes] = field(default_factory=dict)
    """Float32 numbers by name, the observed one first and the same resamples for all: the reader compares any two."""


def render(title: str, sections: Sequence[Section], *, warning: str = "", refresh_s: int | None = None) -> str:
    """Return the page as HTML.

    `warning`: a line above everything else. `refresh_s`: seconds after which the page loads itself again, until it is
    `STALE_S` old.
    """
    now = datetime.now().astimezone()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = lambda numbers: b64encode(numbers).decode()
    environment.filters["webp"] = lambda image: f"data:image/webp;base64,{b64encode(image).decode()}"
    figures = {chart.id: _short(json.loads(chart.figure.to_json())) for s in sections for chart in s.charts}
    page = environment.get_template("page.html.j2").render(
        policy=POLICY,
        title=title,
        sections=sections,
        warning=warning,
        refresh_s=refresh_s,
        written_s=int(now.timestamp()),
        written=now.strftime("%Y-%m-%d %H:%M %Z"),
        stale_s=STALE_S,
        # a "<" may end the script element around the figures
        figures=json.dumps(figures, separators=(",", ":")).replace("<", "\\u003c"),
        plotly=plotly.offline.get_plotlyjs() if figures else "",
    )
    traces = {trace.type for section in sections for chart in section.charts for trace in chart.figure.data}
    return page.replace(POLICY, _policy(page, compiles=bool(traces & COMPILES)), 1)


def _policy(page: str, *, compiles: bool) -> str:
    """Return the Content-Security-Policy of a page: its own scripts run, nothing is loaded and nothing is sent.

    A script that gets into the page through a name or an error message is not among the hashes, and does not run.
    """
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    allowed = [f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts]
    if compiles:
        allowed.append("'unsafe-eval'")
    # plotly.js writes styles; pictures are in the page
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {' '.join(allowed)}; {rest}"


def _short(value: Any) -> Any:
    """Return plotly's JSON with fewer digits, and without the default theme, which is long."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items() if k != "template"}
    if isinstance(value, list):
        return [_short(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT}g}") if math.isfinite(value) else None
    return value
