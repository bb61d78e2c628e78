"""The leaderboard: one row per refitted configuration and baseline, ranked by the test's mean H over seeds."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from rich.box import SIMPLE_HEAD
from rich.table import Table

from data_prep.storage import Storage, join
from search_spaces import Ablation

ORACLE = "oracle"
ORACLE_NOTE = "ORACLE: configurations were selected with test labels. An upper bound, not a result."


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the leaderboard; None where a number does not exist (a baseline has no selection score)."""

    rank: int = 0
    """1 is the best `test_h_mean`; `rank_rows` sets it. Published rows have none: 0."""
    method: str
    """Method's name."""
    config_id: str
    """The configuration's id in the study, or the baseline's."""
    select: str
    """What selection looked at: pseudo-unseen, or oracle."""
    benchmark: str
    """Benchmark."""
    clip: str
    """Checkpoint."""
    val_h_mean: float | None = None
    """Selection: H, mean over folds."""
    val_h_std: float | None = None
    """Its deviation over folds."""
    test_known_micro: float | None = None
    """Accuracy over images of seen classes; this and the other test numbers are means over seeds."""
    test_unknown_micro: float | None = None
    """Accuracy over images of unseen classes."""
    test_all_micro: float | None = None
    """Accuracy over all images."""
    test_seen_mean: float | None = None
    """S: mean accuracy of the seen classes."""
    test_unseen_mean: float | None = None
    """U: mean accuracy of the unseen classes."""
    test_h_mean: float | None = None
    """H = 2SU / (S + U)."""
    test_h_std: float | None = None
    """Its deviation over seeds."""
    h_gain: float | None = None
    """H minus zero-shot CLIP's."""
    h_gain_lo: float | None = None
    """Lower end of the gain's paired-bootstrap 95 % interval over test images."""
    h_gain_hi: float | None = None
    """Upper end."""
    n_seeds: int = 0
    """Refits."""
    train_seconds: float | None = None
    """Time of the refits."""
    feature_fingerprint: str
    """Fingerprint of the feature cache."""
    source: str = "this study"
    """Who measured it: this study, or a publication."""
    params: str = "{}"
    """The configuration, as JSON."""
    selected: bool = False
    """The one to quote: of its method's rows the one with the best `val_score`; `rank_rows` sets it."""
    pareto: bool = False
    """On the Pareto front of a two-objective study."""
    test_t1: float | None = None
    """Mean accuracy of the unseen classes when only they compete."""
    test_ausuc: float | None = None
    """Area under the curve of S against U over every threshold between seen and unseen classes."""
    test_h_oracle_tau: float | None = None
    """H at the threshold that is best on the test images: what choosing the threshold honestly cost is its distance."""
    h_behind: float | None = None
    """How far H lies behind the selected row of the study's own method (in an ablation: the full model's)."""
    h_behind_lo: float | None = None
    """Lower end of that difference's paired-bootstrap 95 % interval."""
    h_behind_hi: float | None = None
    """Upper end."""
    val_score: float | None = None
    """Selection: what it maximises, the criterion's value; without one of its own a configuration is not selected."""


_ARROW: dict[Any, pa.DataType] = {int: pa.int64(), bool: pa.bool_(), str: pa.string(), float | None: pa.float64()}
SCHEMA = pa.schema([(f.name, _ARROW[f.type]) for f in fields(Row)])
"""The columns, in order."""


_OF_VARIANTS = (
    "test_seen_mean test_unseen_mean test_h_mean test_h_std h_gain h_gain_lo h_gain_hi h_behind h_behind_lo h_behind_hi"
).split()
_PUBLISHED = ("published_seen", "published_unseen", "published_h")
ABLATION_SCHEMA = pa.schema(
    [
        ("variant", pa.string()),
        ("benchmark", pa.string()),
        *((name, pa.float64()) for name in (*_OF_VARIANTS, *_PUBLISHED)),
        ("published_in", pa.string()),
    ]
)
"""The columns of an ablation, in order; the published ones were measured on other data."""


def mean_over_seeds(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """A row's test columns from `protocol.evaluate`'s metrics of every seed."""
    mean = {name: statistics.fmean(s[name] for s in seeds) for name in seeds[0]}
    h = mean.pop("test_h")
    return {
        **mean,
        "test_h_mean": h,
        "test_h_std": statistics.pstdev(s["test_h"] for s in seeds),
        "n_seeds": len(seeds),
    }


def rank_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows by mean test H, best first, with their ranks and every method's selected row."""

    def key(value: float | None) -> float:
        return -math.inf if value is None else value

    best: dict[str, Row] = {}
    for row in rows:
        if row.val_score is not None and row.val_score > key(
            best[row.method].val_score if row.method in best else None
        ):
            best[row.method] = row
    ordered = sorted(rows, key=lambda r: -key(r.test_h_mean))
    return [replace(row, rank=i, selected=best.get(row.method) is row) for i, row in enumerate(ordered, start=1)]


def write_leaderboard(storage: Storage, rows: Sequence[Row]) -> list[str]:
    """Write leaderboard.parquet, .csv and .md; returns the paths to show. Rows come from `rank_rows`."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    oracle = any(row.select == ORACLE for row in rows)
    return _write_table(storage, "leaderboard", table, to_markdown(rows), note=ORACLE_NOTE if oracle else "")


def write_ablation(storage: Storage, ablation: Ablation, rows: Sequence[Row]) -> list[str]:
    """Write ablation.parquet, .csv and .md: every variant, what its part was worth, and what was published for it."""
    by_method = {row.method: row for row in rows}
    found = [(name, by_method.get(ablation.method(name))) for name in ablation.variants]
    lines = []
    for variant, row in found:
        if row is not None:
            published = ablation.published.get(variant, (None, None, None))
            lines.append(
                {
                    "variant": variant,
                    "benchmark": row.benchmark,
                    **{name: getattr(row, name) for name in _OF_VARIANTS},
                    **dict(zip(_PUBLISHED, (v and v / 100 for v in published), strict=True)),
                    "published_in": ablation.published_in,
                }
            )
    return _write_table(storage, "ablation", pa.Table.from_pylist(lines, schema=ABLATION_SCHEMA), _ablation_md(lines))


def _write_table(storage: Storage, name: str, table: pa.Table, markdown: str, *, note: str = "") -> list[str]:
    parquet, csv = BytesIO(), BytesIO()
    pa.parquet.write_table(table.replace_schema_metadata({"note": note} if note else {}), parquet)
    pa.csv.write_csv(table, csv)
    contents = {f"{name}.parquet": parquet.getvalue(), f"{name}.csv": csv.getvalue(), f"{name}.md": markdown.encode()}
    for file, content in contents.items():
        storage.write(file, content)
    return [join(storage.shown, file) for file in contents]


def read_leaderboard(storage: Storage) -> list[Row]:
    """The rows of leaderboard.parquet."""
    content = storage.read("leaderboard.parquet")
    if content is None:
        raise FileNotFoundError(join(storage.shown, "leaderboard.parquet"))
    return [Row(**values) for values in pa.parquet.read_table(BytesIO(content), schema=SCHEMA).to_pylist()]


def write_config(storage: Storage, config_id: str, content: Mapping[str, Any]) -> None:
    """Write configs/<config_id>.json of a refitted row."""
    storage.write(f"configs/{config_id}.json", _json(content))


def write_run(storage: Storage, content: Mapping[str, Any]) -> None:
    """Write run.json: versions, command, fingerprint, hardware, times."""
    storage.write("run.json", _json(content))


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


# --- for people -----------------------------------------------------------------------------------------------------


def percent(value: float | None, deviation: float | None = None) -> str:
    """A fraction in per cent, with its deviation if there is one; "" for None."""
    if value is None:
        return ""
    return f"{100 * value:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def difference(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A difference of fractions in points, with its interval if there is one; "" for None."""
    if value is None:
        return ""
    points = [f"{round(100 * v, 2) + 0.0:+.2f}" for v in (value, low, high) if v is not None]  # + 0.0: no minus zero
    return points[0] + (f" [{points[1]}, {points[2]}]" if len(points) == 3 else "")


def _gain(row: Row) -> str:
    return difference(row.h_gain, row.h_gain_lo, row.h_gain_hi)


def _method(row: Row) -> str:
    marks = [
        word for word, on in ((ORACLE, row.select == ORACLE), ("selected", row.selected), ("Pareto", row.pareto)) if on
    ]
    return row.method + (f" ({', '.join(marks)})" if marks else "")


SHOWN: dict[str, Any] = {
    "rank": lambda r: str(r.rank or "–"),
    "method": _method,
    "config": lambda r: r.config_id,
    "select": lambda r: r.select,
    "val H": lambda r: percent(r.val_h_mean, r.val_h_std),
    "known": lambda r: percent(r.test_known_micro),
    "unknown": lambda r: percent(r.test_unknown_micro),
    "all": lambda r: percent(r.test_all_micro),
    "AUSUC": lambda r: "" if r.test_ausuc is None else f"{r.test_ausuc:.3f}",
    "S": lambda r: percent(r.test_seen_mean),
    "U": lambda r: percent(r.test_unseen_mean),
    "H": lambda r: percent(r.test_h_mean, r.test_h_std if r.n_seeds > 1 else None),
    "H gain [95 %]": _gain,
    "behind [95 %]": lambda r: difference(r.h_behind, r.h_behind_lo, r.h_behind_hi),
    "seeds": lambda r: str(r.n_seeds or ""),
    "source": lambda r: r.source,
}
_LEFT = ("method", "config", "select", "source")
_LEGEND = (
    "known, unknown, all: accuracy over images. S, U: mean accuracy per seen and unseen class. H = 2SU / (S + U). "
    "Base-to-novel: each image among its own half of the classes; cross-dataset: among the target's; S and U are over "
    "images there, and where the test has one kind of class only, H is its accuracy. "
    "H gain: over zero-shot CLIP (ensemble). behind: H of the study's own method (its selected row; of an ablation the "
    "full model) minus this row's. Intervals: paired bootstrap over test images, 95 %."
)


def to_markdown(rows: Sequence[Row]) -> str:
    """The leaderboard for reading: percentages, a line of words about each kind of number."""
    lines = [f"# Leaderboard: {', '.join(sorted({r.benchmark for r in rows}))}", ""]
    if any(row.select == ORACLE for row in rows):
        lines += [f"**{ORACLE_NOTE}**", ""]
    lines.append("| " + " | ".join(SHOWN) + " |")
    lines.append("|" + "|".join(":--" if name in _LEFT else "--:" for name in SHOWN) + "|")
    lines += ["| " + " | ".join(show(row).replace("|", "\\|") for show in SHOWN.values()) + " |" for row in rows]
    lines += ["", _LEGEND, ""]
    return "\n".join(lines)


def _ablation_md(lines: Sequence[Mapping[str, Any]]) -> str:
    other = next((line["published_in"] for line in lines if line["published_in"]), "")
    benchmark = next((line["benchmark"] for line in lines), "")
    head = ["variant", "S", "U", "H", "H gain [95 %]", "behind the full model [95 %]"]
    head += ["published S", "published U", "published H"] if other else []
    text = [f"# Ablation: {benchmark}", "", "| " + " | ".join(head) + " |"]
    text.append("|:--" + "|--:" * (len(head) - 1) + "|")
    for line in lines:
        cells = [line["variant"], percent(line["test_seen_mean"]), percent(line["test_unseen_mean"])]
        cells.append(percent(line["test_h_mean"], line["test_h_std"]))
        cells += [difference(*(line[f"{name}{end}"] for end in ("", "_lo", "_hi"))) for name in ("h_gain", "h_behind")]
        cells += [percent(line[name]) for name in _PUBLISHED] if other else []
        text.append("| " + " | ".join(cells) + " |")
    note = f"Published columns: {other}. Another data set: only the order of the variants can be compared."
    return "\n".join([*text, "", *([note, ""] if other else []), _LEGEND, ""])


def _method_and_config(row: Row) -> str:
    return row.method if row.config_id.startswith("zero-shot") else f"{row.method} [dim]{row.config_id}[/dim]"


_BRIEF: dict[str, Any] = {
    "": lambda r: f"{r.rank or '–'}{'*' if r.selected else ' '}",
    "method": lambda r: _method_and_config(replace(r, method=_method(replace(r, selected=False)))),
    "val H": lambda r: percent(r.val_h_mean),
    **{name: SHOWN[name] for name in ("S", "U", "H", "H gain [95 %]")},
}
"""What fits a terminal of 80 columns; the files have the rest."""


def to_terminal(rows: Sequence[Row]) -> Table:
    """The leaderboard as a rich table."""
    oracle = any(row.select == ORACLE for row in rows)
    caption = "* selected: its method's best by validation"
    table = Table(title=ORACLE_NOTE if oracle else None, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in _BRIEF:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=name != "method")
    for row in rows:
        table.add_row(*(show(row) for show in _BRIEF.values()), style="bold" if row.selected else None)
    return table
