"""Where a study's results go: a folder, or a URI that pyarrow knows (s3://, gs://, hdfs://)."""

import re

from data_prep.errors import UserError
from data_prep.storage import Storage, locate


def open_storage(storage: str, name: str) -> Storage:
    """The folder of study `name` under a folder or URI; tries that it can be written. Raises `UserError`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):  # also keeps it inside the storage
        raise UserError(f"--name must be letters, digits and . _ - (the first a letter or digit), got {name!r}")
    opened = locate(storage) / name
    opened.write(".writable", b"")
    opened.filesystem.delete_file(f"{opened.root}/.writable")
    return opened


IDENTITY = "study.json"
"""File in a study's folder that says which study it is; written before anything else."""
