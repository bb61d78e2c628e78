"""The end of the report: rotation by rotation, what it cost, where it comes from."""

import json
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from study.outputs.results import Results
from study.reporting.page import Cell, Chart, Section, Table


def facts_table(facts: Mapping[str, str], options: Mapping[str, Any]) -> Table:
    """Where a study comes from, and all its options."""
    return Table(
        id="facts",
        columns=("what", "value"),
        rows=[
            *([Cell(text=what), Cell(text=value)] for what, value in facts.items() if value),
            [Cell(text="all options"), Cell(text="show", code=json.dumps(options, indent=1))],
        ],
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


def rotations_section(results: Results) -> Section | None:
    if not results.rotations:
        return None
    return Section(
        id="rotations",
        title="Rotation by rotation",
        paragraphs=[
            "Each rotation makes other classes the unseen ones and is a whole study of its own: search, selection and "
            "test. Its report, with its search, confusions and rows to run again, is report.html in its folder "
            "(rotation-0, rotation-1, …)."
        ],
        charts=[rotations_chart(results)],
    )


def cost_section(results: Results) -> Section | None:
    seconds = results.run.get("seconds", {})
    if not seconds:
        return None
    studies = results.rotations or [results]
    done = [c for s in studies for found in (s.configurations, *s.baselines.values()) for c in found]
    facts = []
    options = results.run.get("options", {})
    if done and seconds.get("search"):
        pruned = sum(c.state == "pruned" for c in done)
        facts.append(f"{60 * len(done) / seconds['search']:.1f} configurations per minute")
        facts.append(f"{100 * pruned / len(done):.0f} % of them stopped early")
        concurrent = results.run.get("concurrent")
        if concurrent:
            busy = sum(c.train_seconds for c in done) / (seconds["search"] * concurrent)
            facts.append(f"{100 * busy:.0f} % of the actors' time in the search spent training and scoring")
    price = options.get("resources", {}).get("price")
    if price is not None:
        facts.append(f"about {price * sum(seconds.values()) / 3600:.2f} at {price:g} per hour")
    resumed = options.get("output", {}).get("resume")
    words = f"{sum(seconds.values()):.0f} seconds in all" + (f": {', '.join(facts)}." if facts and not resumed else ".")
    if resumed:
        words += " The study was resumed: times are those of its last run."
    return Section(id="cost", title="What did it cost?", paragraphs=[words], charts=[seconds_chart(seconds)])


def provenance_section(results: Results) -> Section:
    run = results.run
    options = run.get("options", {})
    facts = {
        "command": run.get("command", ""),
        "checkpoint": results.rows[0].clip,
        "feature fingerprint": run.get("feature_fingerprint", ""),
        "seed": str(options.get("search", {}).get("seed", "")),
        "selection criterion": run.get("criterion", ""),
        "versions": ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items()),
        "cluster": ", ".join(_resource(*item) for item in run.get("hardware", {}).get("cluster", {}).items()),
    }
    return Section(id="provenance", title="Where it comes from", tables=[facts_table(facts, options)])


def _resource(name: str, amount: float) -> str:
    return f"{name} {amount / 2**30:.1f} GB" if name.endswith("memory") else f"{name} {amount:g}"
