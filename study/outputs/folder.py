"""Open a study's folder (local, or behind a URI that pyarrow knows: s3://, gs://, hdfs://) and write files into it."""

import json
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from data_prep.errors import UserError
from data_prep.parquet import parquet_bytes
from data_prep.storage import LEFTOVER, Storage, join, locate, reason

STUDY = "study"
"""Last column of every table: tables of many studies can be read at once."""

IDENTITY = "study.json"
"""File that says which study a folder holds; written before anything else."""


def open_storage(storage: str, name: str) -> Storage:
    """Return the folder of study `name` under a folder or URI, after a trial write. Raises `UserError`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):  # also keeps it inside the storage
        raise UserError(f"must be letters, digits and . _ - (the first a letter or digit), got {name!r}", option="name")
    opened = locate(storage) / name
    opened.write(".writable", b"")
    opened.filesystem.delete_file(f"{opened.root}/.writable")
    return opened


def write_json(storage: Storage, file: str, content: Mapping[str, Any]) -> None:
    """Write a JSON file, indented for people. Raises `UserError` if the storage cannot be written."""
    storage.write(file, (json.dumps(content, indent=2) + "\n").encode())


def write_table(storage: Storage, name: str, table: pa.Table) -> None:
    """Write NAME.parquet, with the study's name as its last column. Raises `UserError` if it cannot be written."""
    study = pa.array([study_name(storage)] * len(table), pa.string())
    storage.write(f"{name}.parquet", parquet_bytes(table.append_column(STUDY, study)))


@contextmanager
def local_files(storage: Storage, names: Collection[str] | None = None) -> Iterator[Path]:
    """Give a folder of this machine with copies of the files of a storage's folder, or of those of them that are named.

    It goes with the `with`. Others' libraries upload folders, and take all that is in them.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in storage.names() if names is None else names:
            content = storage.read(name)
            if content is not None:
                (Path(folder) / name).write_bytes(content)
        yield Path(folder)


def study_name(storage: Storage) -> str:
    """Return the name of the study that a folder, its own or that of a rotation, belongs to."""
    parts = storage.root.rstrip("/").split("/")
    return "/".join(parts[-2:]) if parts[-1].startswith("rotation-") else parts[-1]


def read_table(storage: Storage, name: str, *, schema: pa.Schema | None = None) -> pa.Table | None:
    """Read NAME.parquet; None where there is no such file. `schema`: columns and types to read it with.

    Raises `UserError` if it is damaged.
    """
    content = storage.read(f"{name}.parquet")
    if content is None:
        return None
    try:
        # on this thread: Arrow's own sometimes abort a process that ends soon after, as after a mistake
        table = pa.parquet.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(use_threads=False)
        return table if schema is None else _as(schema, table)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(storage, f"{name}.parquet", error) from error


def _as(schema: pa.Schema, table: pa.Table) -> pa.Table:
    """Return the columns of a schema; those that a table of an earlier version lacks are null."""
    columns = [
        table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type) for f in schema
    ]
    return pa.table(columns, schema=schema)


def read_json(storage: Storage, file: str) -> dict[str, Any] | None:
    """Read a JSON file; None where there is no such file. Raises `UserError` if it is damaged."""
    content = storage.read(file)
    if content is None:
        return None
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise _damaged(storage, file, error) from error
    return found


def _damaged(storage: Storage, file: str, error: Exception) -> UserError:
    path = join(storage.shown, file)
    return UserError(f"{path} is damaged ({reason(error)}): remove it and resume the study, which writes it again")


def clear_leftovers(storage: Storage) -> None:
    """Remove half-written files that killed processes left in a study's local folder, which this process holds."""
    if storage.is_local:
        for left in Path(storage.root).rglob("*.tmp"):
            if LEFTOVER.search(left.name):
                left.unlink(missing_ok=True)
