"""The report's answer to: what does each part do?"""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from study.evaluation.leaderboard import Row
from study.evaluation.leaderboard_text import percent
from study.outputs.results import Results
from study.reporting.overview import number_cells
from study.reporting.page import Cell, Chart, Section, Table
from study.reporting.style import MUTED, OTHER, OWN, whiskers


def ablation_table(variants: Mapping[str, Row], published: Mapping[str, Sequence[float | None]]) -> Table:
    """Every variant and how far it lies behind the full model. `published`: S, U, H by variant, if any were."""
    ours, theirs = ("S", "U", "H", "behind [95 %]"), ("S", "U", "H")
    return Table(
        id="ablation-table",
        columns=(
            "variant",
            *ours[:-1],
            "behind the full model [95 %]",
            *(f"published {name}" for name in theirs if published),
        ),
        rows=[
            [
                Cell(text=name),
                *number_cells(row, ours),
                *(Cell(text=percent(v), value=v) for v in published.get(name, (None,) * len(theirs)) if published),
            ]
            for name, row in variants.items()
        ],
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
            error_x=whiskers(behind) | {"color": MUTED},
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


def ablation_section(ablation: Results) -> Section:
    reference = ablation.run["reference"]
    rows = [r for r in ablation.rows if r.method.partition(":")[0] == ablation.searched]
    rows.sort(key=lambda r: (r.method != reference, r.h_behind or 0.0))
    variants = {r.method.partition(": ")[2] or r.method: r for r in rows}
    paragraphs = [
        f"Study “{ablation.name}”: the same configuration with one part removed or changed at a time, each variant "
        "trained and scored like the full model. An interval that includes zero means that these test images cannot "
        "tell the variant from the full model."
    ]
    lines = ablation.tables["ablation"].to_pylist() if "ablation" in ablation.tables else []
    published = {
        line["variant"]: [line[f"published_{name}"] for name in ("seen", "unseen", "h")]
        for line in lines
        if line["published_h"] is not None
    }
    if published:
        paragraphs.append(
            f"Published numbers are those of {lines[0]['published_in']}: another data set, so only the order of the "
            "variants can be compared."
        )
    return Section(
        id="ablation",
        title="What does each part do?",
        paragraphs=paragraphs,
        charts=[ablation_chart(variants, {name: h for name, (_, _, h) in published.items()})],
        tables=[ablation_table(variants, published)],
    )
