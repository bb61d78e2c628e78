"""A study has one driver: a lock on a disk, a lease in an object store."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from data_prep.errors import UserError
from data_prep.storage import Storage, locate
from study.outputs import study_lock
from study.outputs.study_lock import LEASE, hold_study


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A folder that says that it is an object store."""
    monkeypatch.setattr(study_lock, "RACE_S", 0.05)
    (tmp_path / "study").mkdir()
    filesystem = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    storage = replace(locate(tmp_path), filesystem=filesystem, root="study")
    assert not storage.is_local
    return storage


def test_on_a_disk_a_second_driver_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    storage = locate(tmp_path)
    with hold_study(storage):
        with pytest.raises(UserError, match="name must be a study that nobody runs: another process holds"):
            with hold_study(storage):
                pass
    with hold_study(storage):
        pass


def test_in_a_store_a_fresh_lease_is_refused_and_removed_at_the_end(store: Storage) -> None:
    with hold_study(store):
        with pytest.raises(UserError, match="nobody runs: process [0-9]+ on .* holds .*, and said so 0 s ago"):
            with hold_study(store):
                pass
        assert store.names() == [LEASE]
    assert store.names() == []


def test_a_stale_lease_is_taken_over(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(LEASE, json.dumps({"id": "dead", "owner": "process 1 on nowhere"}).encode())
    time.sleep(0.3)
    monkeypatch.setattr(study_lock, "STALE_S", 0.2)
    with hold_study(store):
        assert json.loads(store.read(LEASE) or b"{}")["id"] != "dead"


def test_a_lease_stays_fresh_while_its_driver_lives(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that looks older than any driver may be is fresh again, and a second driver is refused."""
    lease = tmp_path / "study" / LEASE
    monkeypatch.setattr(study_lock, "HEARTBEAT_S", 0.1)
    with hold_study(store):
        for _ in range(2):
            old = time.time() - 2 * study_lock.STALE_S
            os.utime(lease, (old, old))
            deadline = time.monotonic() + 30
            while lease.stat().st_mtime < time.time() - study_lock.STALE_S:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            with pytest.raises(UserError, match="nobody runs"):
                with hold_study(store):
                    pass


def test_of_two_drivers_at_the_same_time_one_has_the_study(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    rival = json.dumps({"id": "rival", "owner": "process 2 on another machine"}).encode()
    write = study_lock._Lease._write

    def write_before_the_rival(lease: study_lock._Lease) -> None:
        write(lease)
        store.write(LEASE, rival)

    monkeypatch.setattr(study_lock._Lease, "_write", write_before_the_rival)
    with pytest.raises(UserError, match="process 2 on another machine holds"):
        with hold_study(store):
            pass
    assert store.read(LEASE) == rival  # the loser leaves it alone


def test_a_driver_whose_study_was_taken_over_is_interrupted(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_lock, "HEARTBEAT_S", 0.1)
    rival = json.dumps({"id": "rival", "owner": "process 2 on another machine"}).encode()
    with pytest.raises(KeyboardInterrupt):
        with hold_study(store):
            store.write(LEASE, rival)
            for _ in range(500):  # what interrupts the main thread wakes it from no sleep
                time.sleep(0.01)
    assert store.read(LEASE) == rival
