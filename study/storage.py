"""Where a study's results go: a folder, or a URI that pyarrow knows (s3://, gs://, hdfs://)."""

import re
from pathlib import Path

from data_prep.errors import UserError
from data_prep.storage import Storage, locate


def pull(storage: Storage, file: Path) -> None:
    """Fetch the stored copy of an append-only file if it holds more than the local one, e.g. on a new head node."""
    stored = storage.read(file.name)
    if stored and len(stored) > (file.stat().st_size if file.exists() else 0):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(stored)


def push(storage: Storage, file: Path) -> None:
    """Store a copy of a local file. Raises `UserError`."""
    storage.write(file.name, file.read_bytes())


def open_storage(storage: str, name: str) -> Storage:
    """The folder of study `name` under a folder or URI; tries that it can be written. Raises `UserError`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):  # also keeps it inside the storage
        raise UserError(f"--name must be letters, digits and . _ - (the first a letter or digit), got {name!r}")
    opened = locate(storage) / name
    opened.write(".writable", b"")
    opened.filesystem.delete_file(f"{opened.root}/.writable")
    return opened
