"""An ablation's files: a line for each variant that was scored, beside published numbers."""

from dataclasses import replace
from pathlib import Path

from rows import row

import search_spaces
from data_prep.storage import locate
from study.outputs.ablation_files import read_ablation, write_ablation


def test_lines_survive_their_files(tmp_path: Path) -> None:
    ablation = search_spaces.load("pva-ablation")
    assert isinstance(ablation, search_spaces.Ablation)
    full, other, *_ = ablation.variants
    rows = [
        row(ablation.method(full), "a-0", val=0.4, h=0.35),
        replace(row(ablation.method(other), "a-1", val=0.4, h=0.33), h_behind=0.02, h_behind_lo=0.01, h_behind_hi=0.03),
        row("CLIP zero-shot", "zero-shot", val=None, h=0.30),
    ]
    paths = write_ablation(locate(tmp_path), ablation, rows)
    assert [Path(p).name for p in paths] == ["ablation.parquet", "ablation.csv", "ablation.md"]
    first, second = read_ablation(locate(tmp_path))
    assert (first.variant, first.test_h_mean, first.h_behind) == (full, 0.35, None)
    assert (second.variant, second.h_behind, second.h_behind_hi) == (other, 0.02, 0.03)
    assert first.published == tuple(value / 100 for value in ablation.published[full])
    text = (tmp_path / "ablation.md").read_text()
    assert f"| {other} |  |  | 33.00 ± 0.50 | +1.23 [+0.10, +2.00] | +2.00 [+1.00, +3.00] |" in text
    assert "Published columns: PVA, ECCV 2024" in text


def test_other_studies_have_no_lines(tmp_path: Path) -> None:
    assert read_ablation(locate(tmp_path)) == []
