"""`--ledger URL`: the same ledger in SQLite and in a real PostgreSQL, which is started here if it is installed."""

import json
import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
import toy
from postgres_server import PostgresServer, programs
from postgres_server import postgres_server as running_server

from data_prep.errors import UserError
from study import run_study
from study.search import database
from study.search.ledger import Ledger, open_ledger, read_ledger
from study.search.pack_queue import PackQueue
from study.search.records import PackReport


@pytest.fixture(scope="module")
def postgres(postgres_server: PostgresServer) -> str:
    return postgres_server.url


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    if not programs():
        pytest.skip("no PostgreSQL server is installed (pg_ctl)")
    with running_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("postgres") if request.param == "postgres" else f"sqlite:///{tmp_path}/ledger.db"


def ledger(folder: Path, **options: Any) -> Ledger:
    return open_ledger(folder, **{"space": toy.SPACE, "identity": toy.IDENTITY, **options})


def search(book: Ledger, packs: int) -> None:
    """Train this many packs, and begin one more."""
    queue = PackQueue(book, toy.SPACE, configs=12, pack=4, sampler="tpe", seed=7)
    for i in range(packs):
        lanes = queue.next_pack(str(i))
        queue.end(str(i), PackReport(ended={x.number: toy.lane_result(x.params, x.seed) for x in lanes}))
    queue.next_pack("running when the driver dies")


def outcome(book: Ledger) -> list[Any]:
    return [replace(c, number=0) for c in book.finished()]


def test_a_database_keeps_what_a_journal_keeps(tmp_path: Path, url: str) -> None:
    with ledger(tmp_path / "journal") as book:
        search(book, packs=9)
        expected = outcome(book)
    where = {"url": url, "name": "toy/baselines/toy"}
    with ledger(tmp_path / "first", **where) as book:
        search(book, packs=2)
    with ledger(tmp_path / "another", url=url, name="another") as other:  # beside it
        search(other, packs=1)
    with ledger(tmp_path / "new machine", **where, resume=True) as book:
        search(book, packs=9)
        assert outcome(book) == expected and len(expected) == 12
        assert {t.user_attrs["reason"] for t in book.trials() if "requeued" in t.user_attrs} == {"its driver died"}
        book.write_journal()
        copy = read_ledger(tmp_path / "new machine")
        assert outcome(copy) == expected and copy.identity == book.identity
        assert [vars(t) for t in copy.trials()] == [vars(t) | {"_trial_id": t.number} for t in book.trials()]


def test_one_driver_at_a_time(tmp_path: Path, url: str) -> None:
    where = {"url": url, "name": "held"}
    with ledger(tmp_path / "a", **where):
        with pytest.raises(UserError, match="another process holds held in"):
            ledger(tmp_path / "b", **where, resume=True)
        ledger(tmp_path / "c", url=url, name="free").close()
    with pytest.raises(UserError, match="name must be new, or resume given: .*, held already holds a study"):
        ledger(tmp_path / "b", **where)


def test_the_study_of_a_driver_that_was_killed_is_free(tmp_path: Path, url: str) -> None:
    def drive(holds: Any) -> None:
        with database.connect(url).hold("killed"):
            holds.set()
            time.sleep(60)

    fork = multiprocessing.get_context("fork")
    holds = fork.Event()
    driver = fork.Process(target=drive, args=[holds])
    driver.start()
    assert holds.wait(20)
    with pytest.raises(UserError, match="another process holds"), database.connect(url).hold("killed"):
        pass
    driver.kill()
    driver.join()
    time.sleep(0.2)  # the server notices
    with database.connect(url).hold("killed"):
        pass


class Outage:
    """Breaks the connection of a ledger's database now and then: before a statement, or after a commit."""

    def __init__(self, book: Ledger, *, share: float) -> None:
        """`share`: of events that break; 1: the database is gone for good."""
        assert book._database
        self.share, self.breaks, self.draw = share, 0, random.Random(0).random
        dialect: Any = book._database.engine.dialect
        self.error = dialect.loaded_dbapi.OperationalError
        execute, commit = dialect.do_execute, dialect.do_commit
        disconnect = dialect.is_disconnect
        dialect.is_disconnect = lambda error, *given: "closed the conn" in str(error) or disconnect(error, *given)
        dialect.do_execute = lambda cursor, *given: (self.pass_or_break(cursor.connection), execute(cursor, *given))
        dialect.do_commit = lambda connection: (commit(connection), self.pass_or_break(connection))

    def pass_or_break(self, connection: Any) -> None:
        if self.draw() < self.share:
            self.breaks += 1
            connection.rollback()  # as a server does
            raise self.error("the server closed the connection")


def test_a_database_that_is_away_for_a_while_changes_nothing(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "FIRST_PAUSE_S", 0.001)
    with ledger(tmp_path / "journal") as book:
        search(book, packs=9)
        expected = outcome(book), len(book.trials())
    with ledger(tmp_path / "a", url=postgres, name="away", patience_s=20.0) as book:
        outage = Outage(book, share=0.03)
        search(book, packs=9)
        outage.share = 0.0
        assert (outcome(book), len(book.trials())) == expected  # no trial twice
        assert outage.breaks > 10


def test_a_database_that_is_gone_for_good_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "FIRST_PAUSE_S", 0.01)
    url = f"sqlite:///{tmp_path}/ledger.db"
    with ledger(tmp_path / "a", url=url, name="gone", patience_s=0.2) as book:
        queue = PackQueue(book, toy.SPACE, configs=12, pack=4, sampler="tpe", seed=7)
        lanes = queue.next_pack("0")
        Outage(book, share=1.0)
        queue.end("0", PackReport(ended={x.number: toy.lane_result(x.params, x.seed) for x in lanes}))
        started = time.monotonic()
        message = f"ledger must be a database that answers, {url} was away for 0.2 s: the server closed"
        for _ in range(3):  # given up once
            with pytest.raises(UserError, match=message):
                queue.next_pack("1")
        assert time.monotonic() - started < 0.1


def test_a_server_that_starts_again(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """Killed in the middle of a search, and back after two seconds: the search goes on, and still holds the study."""
    with ledger(tmp_path / "journal") as book:
        search(book, packs=9)
        expected = outcome(book)
    where = {"url": postgres_server.url, "name": "restarted", "patience_s": 60.0}
    with ledger(tmp_path / "a", **where) as book:
        stop = threading.Timer(0.3, postgres_server.restart, kwargs={"away_s": 2.0})
        stop.start()
        search(book, packs=9)
        stop.join()
        assert outcome(book) == expected
        with pytest.raises(UserError, match="another process holds restarted"):
            ledger(tmp_path / "b", **where, resume=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("results.db", "must be postgresql://USER@HOST/DATABASE or sqlite:///FILE, got no URL: results.db"),
        ("mysql://me@host/db", "must be postgresql://USER@HOST/DATABASE or sqlite:///FILE, got mysql://me@host/db"),
        ("postgresql://me:secret@host/db", "must be a URL without a password"),
        ("postgresql://host/db?password=secret", "must be a URL without a password"),
        ("postgresql://me@127.0.0.1:1/db", "must be a database that answers, .* Connection refused"),
        ("sqlite:////nowhere/ledger.db", "must be a database that answers, .* unable to open database file"),
    ],
)
def test_one_clear_line_before_any_work(
    given: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small.main(["--ledger", given, "--storage", str(tmp_path)]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert pytest.raises(UserError, database.connect, given).match(f"ledger {message}")
    assert error.startswith("error: --ledger") and "secret" not in error and not list(tmp_path.iterdir())


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r'pip install "zerosweep\[postgres\]"'):
        database.connect("postgresql://me@host/db")


def test_a_study_in_a_database(pva_study: Path) -> None:
    """The one that the report's tests read, which knows the database by its journals."""
    identity, run = (json.loads((pva_study / name).read_text()) for name in ("study.json", "run.json"))
    output = run["options"]["output"]
    url = f"sqlite:///{output['storage']}/ledger.db"  # where it was made: this may be a copy
    assert identity["ledger"] == output["ledger"] == url
    for folder, name in ((pva_study, "pva"), (pva_study / "baselines/linear-probe", "pva/baselines/linear-probe")):
        in_database, journal = read_ledger(folder, url=url, name=name), read_ledger(folder)
        assert journal.finished() == in_database.finished() and len(journal.finished()) == 4
    small = {"epochs": 2, "folds": 2, "name": "pva", "storage": str(pva_study.parent), "resume": True}
    with pytest.raises(UserError, match="ledger was 'sqlite:///.*', now None"):  # it would search all over
        run_study(space="pva", **small)


def test_a_journal_is_written_no_more_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ledger(tmp_path) as book:
        search(book, packs=1)
        whole = (tmp_path / "study.journal").read_bytes()

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("study.search.journal.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            search(book, packs=1)
        monkeypatch.undo()
        with pytest.raises(OSError, match="an earlier write failed"):
            search(book, packs=1)
        assert (tmp_path / "study.journal").read_bytes().startswith(whole)
    with ledger(tmp_path, resume=True) as book:
        search(book, packs=9)
        assert len(book.finished()) == 12


@pytest.mark.parametrize("damage", [b'{"op_code":4,"work', b'{"op_code":4}{"op_code":5}\n', b"\0\0\0\n"])
def test_a_damaged_line_of_a_journal_is_named_with_the_way_on(tmp_path: Path, damage: bytes) -> None:
    with ledger(tmp_path) as book:
        search(book, packs=2)
    path = tmp_path / "study.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:7], damage, *lines[8:]]))
    with pytest.raises(UserError, match=f"{path} is damaged in line 8: cut it there .*head -n 7") as error:
        ledger(tmp_path, resume=True)
    assert "--" not in str(error.value)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:7]))
    with ledger(tmp_path, resume=True) as book:
        search(book, packs=9)
        assert len(book.finished()) == 12


def test_what_a_killed_driver_left_is_removed(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        search(book, packs=1)
    left = [tmp_path / f"study.journal.lock{end}" for end in ("", "c0ffee.rename")]
    for path in left:
        path.write_text("")
    ledger(tmp_path, resume=True).close()
    assert not any(path.exists() for path in left)


def test_another_process_may_write_to_the_journal(tmp_path: Path) -> None:
    """A dashboard's note between two writes of the driver; both number trials by what the file holds."""
    with ledger(tmp_path) as book:
        other = read_ledger(tmp_path)
        first = book.ask(toy.SPACE, book.study.sampler, index=0, seed=0)
        theirs = other.study.ask()
        second = book.ask(toy.SPACE, book.study.sampler, index=1, seed=1)
        other.study.set_user_attr("note", "theirs")
        assert [first.number, theirs.number, second.number] == [0, 1, 2]
        assert book.study.user_attrs["note"] == "theirs"
        assert [vars(t) for t in other.trials()] == [vars(t) for t in read_ledger(tmp_path).trials()]
