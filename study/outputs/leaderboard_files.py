"""The leaderboard as files: Parquet, CSV and Markdown; configurations and run.json as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from data_prep.storage import Storage, join
from search_spaces import Ablation
from study.evaluation.leaderboard import ORACLE, ORACLE_NOTE, SCHEMA, Row
from study.evaluation.leaderboard_text import PUBLISHED_COLUMNS, ablation_markdown, to_markdown

_OF_VARIANTS = (
    "test_seen_mean test_unseen_mean test_h_mean test_h_std h_gain h_gain_lo h_gain_hi h_behind h_behind_lo h_behind_hi"
).split()


ABLATION_SCHEMA = pa.schema(
    [
        ("variant", pa.string()),
        ("benchmark", pa.string()),
        *((name, pa.float64()) for name in (*_OF_VARIANTS, *PUBLISHED_COLUMNS)),
        ("published_in", pa.string()),
    ]
)
"""The columns of an ablation, in order; the published ones were measured on other data."""


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
                    **dict(zip(PUBLISHED_COLUMNS, (v and v / 100 for v in published), strict=True)),
                    "published_in": ablation.published_in,
                }
            )
    return _write_table(
        storage, "ablation", pa.Table.from_pylist(lines, schema=ABLATION_SCHEMA), ablation_markdown(lines)
    )


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
