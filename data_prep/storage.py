"""Folders, on this machine or behind a URI that pyarrow knows (s3://, gs://, hdfs://), with atomic writes.

A store that is not Amazon's is named in the URI, `s3://bucket/prefix?endpoint_override=host:9000&scheme=http`, or by
AWS_ENDPOINT_URL.
"""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from pyarrow import ArrowException, NativeFile
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from data_prep.errors import UserError

LEFTOVER = re.compile(r"\.[0-9a-f]{8}\.tmp$")
"""How the name ends of a file that `Storage.writer` has not finished: a process that is killed leaves it."""

_PASSWORD = re.compile(r"[^/@:]*:(?!\d+(?:/|$))[^@]*@")
"""USER:PASSWORD@ at the beginning of a URI without its scheme; the lookahead passes a port and an @ far behind it."""

_SECRET = re.compile(r"(?<!ssl)key|secret|token|password|passwd|credential|signature|^sig$", re.IGNORECASE)
"""Names of parameters that hold a secret; the sslkey of a PostgreSQL URL is the path of a file."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """One folder."""

    filesystem: FileSystem
    """Where it lies."""
    root: str
    """Its path there."""
    shown: str
    """How to name it to the user, and how `locate` finds it again."""
    option: str
    """Python name of the option it was given as, for errors; empty if it was none."""

    @property
    def is_local(self) -> bool:
        """Whether it lies in the file system of this machine."""
        return isinstance(self.filesystem, LocalFileSystem)

    def __truediv__(self, name: str) -> "Storage":
        return replace(self, root=f"{self.root}/{name}", shown=join(self.shown, name))

    @contextmanager
    def writer(self, name: str) -> Iterator[Any]:
        """Open a stream whose file readers see whole, once the context ends, or not at all. Raises `UserError`."""
        path = f"{self.root}/{name}"
        try:
            self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            if not self.is_local:  # object stores show an object once it is complete
                with self.filesystem.open_output_stream(path) as stream:
                    yield stream
                return
            part = Path(f"{path}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                with part.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except (OSError, ArrowException) as error:
            raise self._not_writable(name, error) from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that readers see either the old one or the whole new one. Raises `UserError`."""
        with self.writer(name) as stream:
            stream.write(content)

    def open(self, name: str) -> NativeFile:
        """Open a file for reading at any place. Raises FileNotFoundError."""
        return self.filesystem.open_input_file(f"{self.root}/{name}")

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None if there is none."""
        path = f"{self.root}/{name}"
        if self.filesystem.get_file_info(path).type == FileType.NotFound:
            return None
        with self.filesystem.open_input_stream(path) as stream:
            return stream.read()

    def names(self, *, recursive: bool = False) -> list[str]:
        """Return the paths of its files below it, sorted; none if it does not exist."""
        found = self.filesystem.get_file_info(FileSelector(self.root, recursive=recursive, allow_not_found=True))
        return sorted(f.path.removeprefix(f"{self.root}/") for f in found if f.type == FileType.File)

    def clear(self, folder: str) -> None:
        """Remove a folder of it, if it is there. Raises `UserError`."""
        path = f"{self.root}/{folder}"
        try:
            if self.filesystem.get_file_info(path).type != FileType.NotFound:
                self.filesystem.delete_dir(path)
        except (OSError, ArrowException) as error:
            raise self._not_writable(folder, error) from error

    def _not_writable(self, name: str, error: Exception) -> UserError:
        return _wrong(self.option, f"must be writable: {join(self.shown, name)}: {reason(error)}")


def locate(where: str | Path, *, option: str = "storage") -> Storage:
    """Return a folder or URI, whether or not it exists.

    `option`: Python name of the option that `where` comes from; empty if it is none. Raises `UserError` for a URI that
    pyarrow does not know, and for one with credentials, which would be written to the files of a study.
    """
    if has_credentials(str(where)):  # the value stays out of the message as well
        rule = (
            "must be a URI without credentials, which would be written to files: use AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or the file of credentials that your store's tools read"
        )
        raise _wrong(option, rule)
    shown = str(where) if "://" in str(where) else str(Path(where).expanduser().resolve())
    try:
        filesystem, root = FileSystem.from_uri(shown) if "://" in shown else (LocalFileSystem(), shown)
    except (ValueError, OSError, ArrowException) as error:
        rule = f"must be a folder or a URI such as s3://bucket/folder, got {str(where)!r}: {reason(error)}"
        raise _wrong(option, rule) from error
    return Storage(filesystem=filesystem, root=root.rstrip("/"), shown=shown, option=option)


def has_credentials(uri: str) -> bool:
    """Return whether a URI holds a password or a key, itself or in one of its parameters."""
    _, mark, rest = uri.partition("://")
    if not mark:
        return False
    address, _, query = rest.partition("?")
    parameters = parse_qsl(query, keep_blank_values=True)
    texts = [address, *(value.rpartition("://")[2] for _, value in parameters)]
    return any(_PASSWORD.match(text) for text in texts) or any(_SECRET.search(name) for name, _ in parameters)


def _wrong(option: str, rule: str) -> UserError:
    """Return the error about a folder that breaks a rule."""
    return UserError(rule, option=option) if option else UserError(f"the folder {rule}")


def join(where: str, name: str) -> str:
    """Return a file or folder below a path or URI; a URI keeps its query."""
    base, mark, query = where.partition("?") if "://" in where else (where, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def reason(error: BaseException) -> str:
    """Return an error as one line; Arrow's go on about details of the C library."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().split(". Detail:")[0].splitlines() or [type(error).__name__])[0]


def pull(storage: Storage, file: Path) -> None:
    """Fetch the stored copy of an append-only file if it holds more than the local one, e.g. on a new head node."""
    stored = storage.read(file.name)
    if stored and len(stored) > (file.stat().st_size if file.exists() else 0):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(stored)


def push(storage: Storage, file: Path) -> None:
    """Store a copy of a local file. Raises `UserError`."""
    storage.write(file.name, file.read_bytes())
