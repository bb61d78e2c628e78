"""Array files of features on this node, which every process of one user maps: no other user can read or place one.

Shapes: I rows, W values of a row.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from filelock import FileLock

from data_prep.errors import UserError
from data_prep.parquet import list_column, matrix
from data_prep.storage import reason

_checked: set[tuple[str, int, int, int]] = set()
"""Files whose content this process has hashed: SHA-256, inode, time of change, bytes. A pack maps the same ones again;
1.3 GB take a second."""


class Scratch:
    """The user's own folder of array files."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """`descriptor`: of the folder, open; files are opened relative to it, so that no link leads elsewhere."""
        self.path, self._descriptor = path, descriptor

    def map(self, name: str, sha256: str) -> np.memmap | None:
        """Map an array (I, W), float16, read-only; None if there is no such file, or its values have another SHA-256.

        Raises `UserError` where the name belongs to a link or to another user's file.
        """
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused(name, reason(error)) from error
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
                raise self._refused(name, "it is no file of this user")
            try:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            except ValueError:
                return None  # cut short
            start, facts = file.tell(), (sha256, status.st_ino, status.st_mtime_ns, status.st_size)
            if facts not in _checked:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    return None
                _checked.add(facts)
            return np.memmap(file, dtype=dtype, mode="r", offset=start, shape=shape)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock of a file: a second process that wants to write the file waits for the first."""
        with FileLock(self.path / f"{name}.lock", mode=0o600):
            yield

    def write(self, name: str, file: pq.ParquetFile) -> None:
        """Write the features of a Parquet file as an array file, a row group at a time, under the file's lock.

        Raises `UserError` where the folder cannot be written.
        """
        for left in os.listdir(self._descriptor):  # by a process that was killed
            if left.startswith(name) and left.endswith(".tmp"):
                os.unlink(left, dir_fd=self._descriptor)
        part = f"{name}.{os.getpid()}.tmp"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(part, flags, 0o600, dir_fd=self._descriptor), "wb") as out:
                shape = (file.metadata.num_rows, file.schema_arrow.field(list_column(file)).type.list_size)
                np.lib.format.write_array_header_1_0(out, {"descr": "<f2", "fortran_order": False, "shape": shape})
                for rows_IW in row_groups(file):
                    out.write(rows_IW.data)
            os.rename(part, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.unlink(part, dir_fd=self._descriptor)
            raise self._refused(name, reason(error)) from error

    def _refused(self, name: str, why: str) -> UserError:
        return UserError(f"{self.path / name} cannot be used: {why}; set ZEROSWEEP_SCRATCH to another folder")


@contextmanager
def open_scratch(parent: Path) -> Iterator[Scratch]:
    """Open the user's own folder in `parent`, made if it is missing. Raises `UserError` unless it is the user's alone.

    In `parent`, such as /tmp, others may have made a folder or link of that name before.
    """
    path = parent / f"zerosweep-{os.getuid()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        rule = "must be a folder, not a link, which this user can write"
        raise UserError(f"{path} {rule}: {reason(error)}; set ZEROSWEEP_SCRATCH to another place") from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            rule = "must belong to this user alone (mode 0700): others could place features there"
            raise UserError(f"{path} {rule}; remove it, or set ZEROSWEEP_SCRATCH to another place")
        yield Scratch(path, descriptor)
    finally:
        os.close(descriptor)


def row_groups(file: pq.ParquetFile) -> Iterator[np.ndarray]:
    """Yield the features of a Parquet file, float16 (I, W), a row group at a time."""
    column = list_column(file)
    for group in range(file.metadata.num_row_groups):
        yield np.ascontiguousarray(matrix(file.read_row_group(group, columns=[column])[column]))


def features_sha256(file: pq.ParquetFile) -> str:
    """Return the hex SHA-256 of the features of a Parquet file, as their array file holds them."""
    digest = hashlib.sha256()
    for rows_IW in row_groups(file):
        digest.update(rows_IW.data)
    return digest.hexdigest()
