"""Where a study's results go: a folder, or a URI that pyarrow knows (s3://, gs://, hdfs://)."""

import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import FileSystem, FileType, LocalFileSystem

from data_prep.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Storage:
    """One study's folder."""

    filesystem: FileSystem
    """Where it lies."""
    root: str
    """Its path there."""
    shown: str
    """How to name it to the user."""

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that readers see either the old one or the whole new one. Raises `UserError`."""
        path = f"{self.root}/{name}"
        try:
            self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            # object stores show an object once it is complete; a local file needs the rename
            target = f"{path}.{uuid.uuid4().hex[:8]}.tmp" if self.is_local else path
            try:
                with self.filesystem.open_output_stream(target) as stream:
                    stream.write(content)
                if target != path:
                    self.filesystem.move(target, path)
            except BaseException:
                if target != path and self.filesystem.get_file_info(target).type != FileType.NotFound:
                    self.filesystem.delete_file(target)
                raise
        except (OSError, ArrowException) as error:
            raise UserError(f"--storage must be writable: {self.shown}/{name}: {_reason(error)}") from error

    def read(self, name: str) -> bytes | None:
        """A file's content, None if there is none."""
        path = f"{self.root}/{name}"
        if self.filesystem.get_file_info(path).type == FileType.NotFound:
            return None
        with self.filesystem.open_input_stream(path) as stream:
            return stream.read()


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
    where = storage if "://" in storage else str(Path(storage).expanduser().resolve())
    try:
        filesystem, root = FileSystem.from_uri(where) if "://" in where else (LocalFileSystem(), where)
    except (ValueError, OSError, ArrowException) as error:
        raise UserError(
            f"--storage must be a folder or a URI such as s3://bucket/folder, got {storage!r}: {_reason(error)}"
        ) from error
    opened = Storage(filesystem=filesystem, root=f"{root.rstrip('/')}/{name}", shown=f"{where.rstrip('/')}/{name}")
    opened.write(".writable", b"")
    opened.filesystem.delete_file(f"{opened.root}/.writable")
    return opened


def _reason(error: BaseException) -> str:
    """An error as one line; Arrow's go on about details of the C library."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split(". Detail:")[0].splitlines()[0]
