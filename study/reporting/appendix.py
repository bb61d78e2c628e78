"""The end of the report: each rotation's ranking, what the study cost, and where it comes from."""

import json
from collections.abc import Mapping

import plotly.graph_objects as go

from study.outputs.provenance import RunRecord
from study.outputs.results import Results
from study.reporting.page import Cell, Chart, Section, Table

# --- rotation by rotation ---------------------------------------------------------------------------------------------


def rotations_section(results: Results) -> Section | None:
    """Show how methods rank in each rotation; None of a study with one rotation."""
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


def rotations_chart(results: Results) -> Chart:
    """Draw H of each method's selected row in each rotation."""
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


# --- cost -------------------------------------------------------------------------------------------------------------


def cost_section(results: Results) -> Section | None:
    """Say how long the study took, at what speed it searched, and what it cost; None where nothing was measured."""
    seconds, options = results.run.seconds, results.run.options
    if not seconds:
        return None
    studies = results.rotations or [results]
    done = [c for s in studies for found in (s.configurations, *s.baselines.values()) for c in found]
    facts = []
    if done and seconds.get("search"):
        speeds = [f"{speed:g} ({space})" for space, speed in results.run.configurations_per_minute.items()]
        if speeds:
            facts.append(f"configurations per minute: {', '.join(speeds)}")
        if results.run.concurrent:
            busy = sum(c.train_seconds for c in done) / (seconds["search"] * results.run.concurrent)
            facts.append(f"{100 * busy:.0f} % of the actors' time in the search spent training and scoring")
    if options.price is not None:
        facts.append(f"about {options.price * sum(seconds.values()) / 3600:.2f} at {options.price:g} per hour")
    words = f"{sum(seconds.values()):.0f} seconds in all"
    if facts and not options.resumed:
        words += f": {', '.join(facts)}"
    words += "."
    if options.resumed:
        words += " The study was resumed: times are those of its last run."
    return Section(id="cost", title="What did it cost?", paragraphs=[words], charts=[seconds_chart(seconds)])


def seconds_chart(seconds: Mapping[str, float]) -> Chart:
    """Draw the wall time of each stage."""
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


# --- provenance -------------------------------------------------------------------------------------------------------


def provenance_section(results: Results) -> Section:
    """Show the command, options, versions and hardware of the study."""
    table = facts_table(results.run, results.rows[0].clip)
    return Section(id="provenance", title="Where it comes from", tables=[table])


def facts_table(run: RunRecord, checkpoint: str) -> Table:
    """List the facts of a study's record that are known, and all its options."""
    seed, environment = run.options.seed, run.environment
    facts = {
        "command": run.command,
        "checkpoint": checkpoint,
        "feature fingerprint": run.feature_fingerprint,
        "seed": "" if seed is None else str(seed),
        "selection criterion": run.criterion,
        "versions": ", ".join(f"{name} {version}" for name, version in environment.versions.items()),
        "cluster": ", ".join(_resource(*item) for item in environment.cluster.items()),
    }
    return Table(
        id="facts",
        columns=("what", "value"),
        rows=[
            *([Cell(text=what), Cell(text=value)] for what, value in facts.items() if value),
            [Cell(text="all options"), Cell(text="show", code=json.dumps(run.options.by_group, indent=1))],
        ],
    )


def _resource(name: str, amount: float) -> str:
    """Say how much of a resource there is; Ray counts memory in bytes."""
    return f"{name} {amount / 2**30:.1f} GB" if name.endswith("memory") else f"{name} {amount:g}"
