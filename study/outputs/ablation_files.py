"""Write and read an ablation: ablation.parquet, ablation.csv and ablation.md, a line for each variant."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import pyarrow as pa

from data_prep.storage import Storage
from search_spaces import Ablation
from study.evaluation.leaderboard import Row
from study.evaluation.leaderboard_text import H_GAIN, LEGEND, H, S, U, difference, percent
from study.outputs.folder import read_table
from study.outputs.leaderboard_files import write_formats

ABLATION = "ablation"
"""Name of the three files, without their endings."""


@dataclass(frozen=True, kw_only=True)
class AblationLine:
    """One variant of a method: the numbers of its leaderboard row, and those that were published for it."""

    variant: str
    """Name of the variant: the part that was removed or changed."""
    benchmark: str
    """Benchmark of the study."""
    test_seen_mean: float | None
    """S: mean accuracy of the seen classes; this and the next nine numbers are those of the leaderboard's row."""
    test_unseen_mean: float | None
    """U: mean accuracy of the unseen classes."""
    test_h_mean: float | None
    """H = 2SU / (S + U)."""
    test_h_std: float | None
    """Deviation of H over seeds."""
    h_gain: float | None
    """H minus zero-shot CLIP's."""
    h_gain_lo: float | None
    """Lower end of the gain's 95 % interval."""
    h_gain_hi: float | None
    """Upper end of the gain's 95 % interval."""
    h_behind: float | None
    """H of the full model minus the variant's."""
    h_behind_lo: float | None
    """Lower end of that difference's 95 % interval."""
    h_behind_hi: float | None
    """Upper end of that difference's 95 % interval."""
    published_seen: float | None
    """Accuracy on seen classes that was published for the variant, on other data; a fraction like all numbers here."""
    published_unseen: float | None
    """Published accuracy on unseen classes."""
    published_h: float | None
    """Published H."""
    published_in: str
    """Publication and its data; "" if nothing was published."""

    @property
    def published(self) -> tuple[float | None, float | None, float | None]:
        """Published S, U and H."""
        return self.published_seen, self.published_unseen, self.published_h


SCHEMA = pa.schema([(f.name, pa.string() if f.type is str else pa.float64()) for f in fields(AblationLine)])
"""The columns of ablation.parquet, in order."""

_MEASURED = [f.name for f in fields(AblationLine) if f.name in Row.__dataclass_fields__ and f.type is not str]
"""Numbers that a line takes over from its row."""


def write_ablation(storage: Storage, ablation: Ablation, rows: Sequence[Row]) -> list[str]:
    """Write a line for each variant that has a row on the leaderboard; return the three paths to show."""
    by_method = {row.method: row for row in rows}
    lines = []
    for variant in ablation.variants:
        row = by_method.get(ablation.method(variant))
        if row is not None:
            lines.append(_line(ablation, variant, row))
    table = pa.Table.from_pylist([asdict(line) for line in lines], schema=SCHEMA)
    return write_formats(storage, ABLATION, table, ablation_markdown(lines))


def _line(ablation: Ablation, variant: str, row: Row) -> AblationLine:
    seen, unseen, h = (v and v / 100 for v in ablation.published.get(variant, (None, None, None)))
    return AblationLine(
        variant=variant,
        benchmark=row.benchmark,
        **{name: getattr(row, name) for name in _MEASURED},
        published_seen=seen,
        published_unseen=unseen,
        published_h=h,
        published_in=ablation.published_in,
    )


def read_ablation(storage: Storage) -> list[AblationLine]:
    """Read the lines of ablation.parquet; none where the study is no ablation."""
    table = read_table(storage, ABLATION, schema=SCHEMA)
    return [] if table is None else [AblationLine(**line) for line in table.to_pylist()]


def ablation_markdown(lines: Sequence[AblationLine]) -> str:
    """Return ablation.md: a title, the table, and what its columns mean."""
    publication = next((line.published_in for line in lines if line.published_in), "")
    benchmark = next((line.benchmark for line in lines), "")
    headings = ["variant", S.heading, U.heading, H.heading, H_GAIN.heading, "behind the full model [95 %]"]
    headings += ["published S", "published U", "published H"] if publication else []
    text = [f"# Ablation: {benchmark}", "", "| " + " | ".join(headings) + " |"]
    text.append("|:--" + "|--:" * (len(headings) - 1) + "|")
    for line in lines:
        cells = [
            line.variant,
            percent(line.test_seen_mean),
            percent(line.test_unseen_mean),
            percent(line.test_h_mean, line.test_h_std),
            difference(line.h_gain, line.h_gain_lo, line.h_gain_hi),
            difference(line.h_behind, line.h_behind_lo, line.h_behind_hi),
        ]
        cells += [percent(value) for value in line.published] if publication else []
        text.append("| " + " | ".join(cells) + " |")
    note = f"Published columns: {publication}. Another data set: only the order of the variants can be compared."
    return "\n".join([*text, "", *([note, ""] if publication else []), LEGEND, ""])
