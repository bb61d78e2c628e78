"""Hold a study for one driver, from study.json to the report: by a lock on a disk, by a lease in an object store."""

import contextlib
import json
import os
import socket
import threading
import uuid
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from data_prep.errors import UserError
from data_prep.interrupts import interrupts
from data_prep.storage import Storage
from study.search.journal import hold_file

LOCK = "study.lock"
"""File that is locked, where the study's folder is on a disk: the kernel lets go of it when the driver dies."""

LEASE = "study.lease"
"""Object that says which driver holds the study, where the folder is in an object store."""

HEARTBEAT_S = 20.0
"""Seconds between two writes of the lease."""

STALE_S = 120.0
"""Age in seconds from which on a lease is that of a driver that died: six heartbeats, for stores that are slow."""

RACE_S = 2.0
"""Seconds after which a driver looks whether another one has written its lease at the same time."""


@contextmanager
def hold_study(storage: Storage) -> Iterator[None]:
    """Hold the study in this folder until the context ends. Raises `UserError` where another driver holds it."""
    if storage.is_local:
        with hold_file(Path(storage.root) / LOCK, storage.shown):
            yield
        return
    lease = _Lease(storage)
    lease.take()
    try:
        yield
    finally:
        lease.release()


class _Lease:
    """A lease in an object store, which knows no locks."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._id = uuid.uuid4().hex
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def take(self) -> None:
        """Write the lease and keep it fresh. Raises `UserError` where another driver's is fresh."""
        self._refuse_others()
        self._write()
        self._over.wait(RACE_S)
        self._refuse_others()  # of two drivers that came at the same time, the later writer has it
        self._thread.start()

    def release(self) -> None:
        """Remove the lease, unless it is another driver's by now."""
        self._over.set()
        self._thread.join(timeout=HEARTBEAT_S)
        with contextlib.suppress(UserError, OSError):  # what stays grows stale
            if self._content().get("id") == self._id:
                self._storage.filesystem.delete_file(f"{self._storage.root}/{LEASE}")

    def _refuse_others(self) -> None:
        held = self._content()
        if not held or held.get("id") == self._id:
            return
        age = self._age()
        if age < STALE_S:
            raise UserError(
                f"must be a study that nobody runs: {held.get('owner')} holds {self._storage.shown}, and said so "
                f"{age:.0f} s ago; a driver that died is forgotten after {STALE_S:.0f} s",
                option="name",
            )

    def _write(self) -> None:
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        content = {"id": self._id, "owner": owner, "time": datetime.now().astimezone().isoformat(timespec="seconds")}
        self._storage.write(LEASE, json.dumps(content).encode())

    def _content(self) -> dict[str, str]:
        """Return what the lease says; empty where there is none."""
        return json.loads(self._storage.read(LEASE) or b"{}")

    def _age(self) -> float:
        """Return the lease's age in seconds by the store's own clock: those of two machines may differ by minutes."""
        now = f".now-{self._id}"
        self._storage.write(now, b"")
        files, root = self._storage.filesystem, self._storage.root
        written, asked = (files.get_file_info(f"{root}/{name}").mtime_ns for name in (LEASE, now))
        files.delete_file(f"{root}/{now}")
        return 0.0 if written is None or asked is None else (asked - written) / 1e9

    def _beat(self) -> None:
        """Write the lease again and again; a store that fails for a while is tried again."""
        while not self._over.wait(HEARTBEAT_S):
            with contextlib.suppress(UserError, OSError):
                if (holder := self._content().get("id")) and holder != self._id:
                    interrupts.last_words = f"another driver has taken {self._storage.shown} over"
                    interrupt_main()  # this driver was stopped for too long: two must not write
                    return
                self._write()
