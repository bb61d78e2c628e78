"""Write and read the leaderboard: leaderboard.parquet, leaderboard.csv and leaderboard.md."""

from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa

from data_prep.parquet import csv_bytes
from data_prep.storage import Storage, join
from study.evaluation.leaderboard import SCHEMA, Row, notes
from study.evaluation.leaderboard_text import to_markdown
from study.outputs.folder import read_table, write_table

LEADERBOARD = "leaderboard"
"""Name of the three files, without their endings."""


def write_leaderboard(storage: Storage, rows: Sequence[Row], *, interrupted: bool = False) -> list[str]:
    """Write the rows, which come from `rank_rows`; return the three paths to show.

    `interrupted`: whether the study was ended before its search was over; the files then say so.
    """
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    markdown, note = to_markdown(rows, interrupted=interrupted), " ".join(notes(rows, interrupted=interrupted))
    return write_formats(storage, LEADERBOARD, table, markdown, note=note)


def write_formats(storage: Storage, name: str, table: pa.Table, markdown: str, *, note: str = "") -> list[str]:
    """Write NAME.parquet, NAME.csv and NAME.md; return their paths to show. `note`: metadata of the Parquet file."""
    write_table(storage, name, table.replace_schema_metadata({"note": note} if note else {}))
    storage.write(f"{name}.csv", csv_bytes(table))
    storage.write(f"{name}.md", markdown.encode())
    return [join(storage.shown, f"{name}.{ending}") for ending in ("parquet", "csv", "md")]


def read_leaderboard(storage: Storage) -> list[Row]:
    """Read the rows of leaderboard.parquet, columns that an older version lacks as None. Raises `FileNotFoundError`."""
    table = read_table(storage, LEADERBOARD, schema=SCHEMA)
    if table is None:
        raise FileNotFoundError(join(storage.shown, f"{LEADERBOARD}.parquet"))
    return [Row(**values) for values in table.to_pylist()]
