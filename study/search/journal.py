"""Optuna's journal file, as a study's one driver writes it."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock
from optuna.storages.journal._storage import JournalOperation

from data_prep.errors import UserError

_INTO_TRIAL = {
    JournalOperation.SET_TRIAL_USER_ATTR: ("user_attrs", "user_attr"),
    JournalOperation.SET_TRIAL_SYSTEM_ATTR: ("system_attrs", "system_attr"),
}


class Journal(BaseJournalBackend):
    """Write the file of Optuna's `JournalFileBackend`, which its dashboard opens, in a fraction of the time.

    `JournalFileBackend` locks the file, syncs the disk and reads back for every attribute. Here all that is written
    within `together` does so once, and a new trial is one line. The file is read once, from its beginning to its end.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.touch()
        self._path, self._lock = path, JournalFileSymlinkLock(str(path))
        self._read = 0  # bytes
        self._pending: list[dict[str, Any]] | None = None  # logged within `together`
        self._pending_read = 0
        self._usable = True

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield what was logged since the last call, which is what Optuna's number says; by other processes, too."""
        self._check()
        if not self._pending_read:
            with self._path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):  # half written
                        return
                    try:
                        log = json.loads(line)
                    except ValueError:
                        raise self._damaged() from None
                    self._read += len(line)
                    yield log
        for log in (self._pending or [])[self._pending_read :]:
            self._pending_read += 1
            yield log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write logs, or hold them back until the end of `together`. Raises OSError."""
        if self._pending is not None:
            self._pending += json.loads(json.dumps(logs))  # as they will be read
            return
        self._lock.acquire()
        try:
            self._write(logs)
        finally:
            self._lock.release()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write everything logged meanwhile in one piece; no other process writes until then. Raises OSError."""
        if self._pending is not None:  # part of a larger piece
            yield
            return
        self._lock.acquire()
        self._pending = []
        try:
            yield
        finally:
            try:
                if self._pending:
                    self._read += self._write(_folded(self._pending))
            finally:
                self._pending, self._pending_read = None, 0
                self._lock.release()

    def _write(self, logs: list[dict[str, Any]]) -> int:
        """Append logs to the file; return the number of bytes."""
        self._check()
        content = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        try:
            with self._path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            self._usable = False  # memory and file may differ: only opening it again puts that right
            raise
        return len(content)

    def _damaged(self) -> UserError:
        """Return the error for a line, the next to be read, that is no JSON."""
        with self._path.open("rb") as file:
            whole = file.read(self._read).count(b"\n")
        return UserError(
            f"{self._path} is damaged in line {whole + 1}: cut it there (head -n {whole} {self._path} > whole; "
            f"mv whole {self._path}) and resume the study: what was recorded from that line on is trained again"
        )

    def _check(self) -> None:
        if not self._usable:
            raise OSError(errno.EIO, "an earlier write failed", str(self._path))


def _folded(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return logs with the parameters and attributes of a trial that is created in them as part of its creation."""
    folded: list[dict[str, Any]] = []
    new: dict[str, Any] | None = None
    for log in logs:
        op = log["op_code"]
        if op == JournalOperation.CREATE_TRIAL:
            new = log
        # the trial that is new is the only one written to after its creation
        if new and op == JournalOperation.SET_TRIAL_PARAM:
            new["params"][log["param_name"]] = log["param_value_internal"]
            new["distributions"][log["param_name"]] = log["distribution"]
        elif new and op in _INTO_TRIAL:
            of_trial, of_log = _INTO_TRIAL[op]
            new[of_trial] |= log[of_log]
        else:
            folded.append(log)
    return folded


@contextmanager
def hold_file(path: Path, study: str) -> Iterator[None]:
    """Hold a study for this process by a lock on a file; the kernel lets go when the process dies, however it dies.

    `study`: how to name the study. Raises `UserError` where another process holds it, OSError where `path` cannot be
    written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise already_running(study) from None
    try:
        yield
    finally:
        lock.release()


def already_running(study: str) -> UserError:
    """Return the error for a study that another process runs."""
    return UserError(f"must be a study that nobody runs: another process holds {study}", option="name")


def mend(journal: Path) -> None:
    """Remove what a killed driver may have left: Optuna's lock file, and a torn last line, which Optuna cannot read.

    Optuna lets go of the lock by renaming its file before it is removed.
    """
    for left in [journal.with_name(f"{journal.name}.lock"), *journal.parent.glob(f"{journal.name}.lock*.rename")]:
        left.unlink(missing_ok=True)
    if not journal.exists():
        return
    text = journal.read_bytes()
    if text and not text.endswith(b"\n"):
        with journal.open("rb+") as file:
            file.truncate(text.rfind(b"\n") + 1)
