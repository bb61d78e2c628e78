"""The report's answer to: which classes win, and which lose?"""

from study.evaluation.leaderboard_text import difference, percent
from study.outputs.results import Results
from study.reporting.page import Cell, Section, Table

WORST = 3
"""Classes named in the text."""


def classes_section(results: Results) -> Section | None:
    """Compare each class's accuracy under the selected row with zero-shot CLIP's; None without the table."""
    if results.tables.per_class is None or results.own is None:
        return None
    classes = sorted(results.tables.per_class.to_pylist(), key=lambda c: (c["difference"], c["class"]))
    better, worse = (sum(sign * c["difference"] > 0 for c in classes) for sign in (1, -1))
    losers = ", ".join(f"{c['class']} ({difference(c['difference'])})" for c in classes[:WORST] if c["difference"] < 0)
    lowest = min(classes, key=lambda c: (c["selected"], c["class"]))
    never = sum(c["selected"] == 0 for c in classes)
    paragraphs = [
        f"Of {len(classes)} classes {results.own.method} recognises {better} better than zero-shot CLIP, {worse} "
        f"worse and {len(classes) - better - worse} as well." + (f" Most is lost on {losers}." if losers else ""),
        f"It never recognises {never} of the {len(classes)} classes."
        if never
        else f"Its worst class is {lowest['class']}, with {percent(lowest['selected'])} % of the images.",
        "Accuracies are means over seeds, in per cent. A class with few images changes by large steps.",
    ]
    columns = ("class", "kind", "images", "zero-shot CLIP", "selected", "difference")
    rows = [
        [
            Cell(text=c["class"]),
            Cell(text="seen" if c["seen"] else "unseen"),
            Cell(text=str(c["images"]), value=c["images"]),
            Cell(text=percent(c["zero_shot"]), value=c["zero_shot"]),
            Cell(text=percent(c["selected"]), value=c["selected"]),
            Cell(text=difference(c["difference"]), value=c["difference"]),
        ]
        for c in classes
    ]
    table = Table(id="classes-table", columns=columns, rows=rows, filter=True)
    return Section(id="classes", title="Which classes win, which lose?", paragraphs=paragraphs, tables=[table])
