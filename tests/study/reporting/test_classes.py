"""Which classes win and which lose, in words and against the predictions."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa

from study.reporting.classes import classes_section
from study.reporting.page import render


def section(*rows: tuple[str, bool, int, float, float]):  # type: ignore[no-untyped-def]
    names = ("class", "seen", "images", "zero_shot", "selected")
    lines = [dict(zip(names, row, strict=True)) | {"difference": row[4] - row[3]} for row in rows]
    tables = SimpleNamespace(per_class=pa.Table.from_pylist(lines))
    return classes_section(SimpleNamespace(tables=tables, own=SimpleNamespace(method="Method")))  # type: ignore[arg-type]


def test_losses_are_named_first() -> None:
    found = section(("ox", True, 4, 0.5, 0.75), ("cow", False, 2, 1.0, 0.5), ("bus", False, 8, 0.25, 0.25))
    assert found.paragraphs[:2] == [
        "Of 3 classes Method recognises 1 better than zero-shot CLIP, 1 worse and 1 as well. "
        "Most is lost on cow (-50.00).",
        "Its worst class is bus, with 25.00 % of the images.",
    ]
    assert [cell.text for cell in found.tables[0].rows[0]] == ["cow", "unseen", "2", "100.00", "50.00", "-50.00"]
    assert [row[0].text for row in found.tables[0].rows] == ["cow", "bus", "ox"]


def test_classes_that_are_never_recognised_are_counted() -> None:
    found = section(("ox", True, 4, 0.5, 0.0), ("cow", False, 2, 0.0, 0.0), ("bus", False, 8, 0.25, 0.5))
    assert found.paragraphs[1] == "It never recognises 2 of the 3 classes."


def test_a_table_of_many_classes_scrolls_by_itself() -> None:
    def page(classes: int) -> str:
        return render("t", [section(*((f"class {c}", True, 2, 0.5, 0.5) for c in range(classes)))])

    assert '<div class="scroll long">' in page(228) and '<div class="scroll long">' not in page(10)


def test_the_table_of_a_study_is_its_predictions(small_study: Path) -> None:
    table = pd.read_parquet(small_study / "per_class.parquet").set_index("class")
    rows = pd.read_parquet(small_study / "leaderboard.parquet")
    predictions = pd.read_parquet(small_study / "predictions.parquet")
    predictions = predictions.assign(right=predictions.label == predictions.predicted)
    for column, method in (("selected", "SRE-CLIP"), ("zero_shot", "CLIP zero-shot (ensemble)")):
        expected = predictions[predictions.method == method].groupby("label").right.mean()
        assert (table[column] - expected).abs().max() < 1e-6
    own = rows[(rows.method == "SRE-CLIP") & rows.selected].iloc[0]
    assert abs(table[table.seen].selected.mean() - own.test_seen_mean) < 1e-6
