"""The report's answer to: what does each part do?"""

from collections.abc import Mapping

import plotly.graph_objects as go

from study.evaluation.leaderboard import Row
from study.evaluation.leaderboard_text import BEHIND, H, S, U, percent
from study.outputs.ablation_files import AblationLine
from study.outputs.results import Results
from study.reporting.page import Cell, Chart, Section, Table
from study.reporting.style import MUTED, OTHER, OWN, number_cells, whiskers


def ablation_section(ablation: Results) -> Section:
    """Show the full model and its variants, those that lost least first, beside published numbers if there are any."""
    run = ablation.run
    rows = [r for r in ablation.rows if r.method.partition(":")[0] == run.own_method]
    rows.sort(key=lambda r: (r.method != run.reference, r.h_behind or 0.0))
    variants = {r.method.partition(": ")[2] or r.method: r for r in rows}
    paragraphs = [
        f"Study “{run.name}”: the same configuration with one part removed or changed at a time, each variant "
        "trained and scored like the full model. An interval that includes zero means that these test images cannot "
        "tell the variant from the full model."
    ]
    published = {line.variant: line for line in ablation.ablation if line.published_h is not None}
    if published:
        paragraphs.append(
            f"Published numbers are those of {ablation.ablation[0].published_in}: another data set, so only the order "
            "of the variants can be compared."
        )
    return Section(
        id="ablation",
        title="What does each part do?",
        paragraphs=paragraphs,
        charts=[ablation_chart(variants, published)],
        tables=[ablation_table(variants, published)],
    )


def ablation_chart(variants: Mapping[str, Row], published: Mapping[str, AblationLine]) -> Chart:
    """Draw H of each variant minus H of the full model, which is the first one; published differences as diamonds."""
    names = list(variants)
    published_h = {name: line.published_h for name, line in published.items() if line.published_h is not None}
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


def ablation_table(variants: Mapping[str, Row], published: Mapping[str, AblationLine]) -> Table:
    """List the variants, how far each lies behind the full model, and published numbers if there are any."""
    accuracies, nothing = (S, U, H), (None, None, None)
    return Table(
        id="ablation-table",
        columns=(
            "variant",
            *(column.heading for column in accuracies),
            "behind the full model [95 %]",
            *(f"published {column.heading}" for column in accuracies if published),
        ),
        rows=[
            [
                Cell(text=name),
                *number_cells(row, (*accuracies, BEHIND)),
                *(
                    Cell(text=percent(value), value=value)
                    for value in (published[name].published if name in published else nothing)
                    if published
                ),
            ]
            for name, row in variants.items()
        ],
    )
