"""Optuna's journal file, as a study's one driver writes it."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock
from optuna.storages.journal._storage import JournalOperation

from data_prep.errors import UserError

_INTO_TRIAL = {
    JournalOperation.SET_TRIAL_USER_ATTR: ("user_attrs", "user_attr"),
    JournalOperation.SET_TRIAL_SYSTEM_ATTR: ("system_attrs", "system_attr"),
}


class Journal(BaseJournalBackend):
    """The same file as `JournalFileBackend`'s, which Optuna and its dashboard open, in a fraction of the time.

    That one locks the file, syncs the disk and reads back for every attribute; here what is written within `together`
    does so once, and a trial that is new there is one line. It is read once, from its beginning to its end.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.touch()
        self._path, self._lock = path, JournalFileSymlinkLock(str(path))
        self._read = 0  # bytes
        self._waiting: list[dict[str, Any]] | None = None  # logged within `together`
        self._waiting_read = 0
        self._usable = True

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """What was logged since the last call, which is what Optuna's number says; others may have written, too."""
        self._check()
        if not self._waiting_read:
            with self._path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):  # half written
                        return
                    self._read += len(line)
                    yield json.loads(line)
        for log in (self._waiting or [])[self._waiting_read :]:
            self._waiting_read += 1
            yield log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write, or keep until the end of `together`. Raises OSError."""
        if self._waiting is not None:
            self._waiting += json.loads(json.dumps(logs))  # as they will be read
            return
        self._lock.acquire()
        try:
            self._write(logs)
        finally:
            self._lock.release()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write what is logged meanwhile in one piece; nobody else writes until then. Raises OSError."""
        if self._waiting is not None:  # part of a larger piece
            yield
            return
        self._lock.acquire()
        self._waiting = []
        try:
            yield
        finally:
            try:
                if self._waiting:
                    self._read += self._write(_folded(self._waiting))
            finally:
                self._waiting, self._waiting_read = None, 0
                self._lock.release()

    def _write(self, logs: list[dict[str, Any]]) -> int:
        """Number of bytes appended."""
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

    def _check(self) -> None:
        if not self._usable:
            raise OSError(errno.EIO, "an earlier write failed", str(self._path))


def _folded(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameters and attributes of a trial that is created here as part of its creation."""
    kept: list[dict[str, Any]] = []
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
            into, what = _INTO_TRIAL[op]
            new[into] |= log[what]
        else:
            kept.append(log)
    return kept


def lock(path: Path, holding: str) -> IO[str]:
    """Hold a study for this process; the kernel lets go when the process dies, however it dies. Raises `UserError`."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"--name must be a study that nobody runs: another process holds {holding}") from None
    return file


def mend(journal: Path) -> None:
    """Undo what a killed driver may have left: Optuna's lock file, and a torn last line, which Optuna cannot read."""
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    text = journal.read_bytes()
    if text and not text.endswith(b"\n"):
        with journal.open("rb+") as file:
            file.truncate(text.rfind(b"\n") + 1)
