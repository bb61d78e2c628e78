"""A ledger in a database instead of a journal: PostgreSQL for many machines, SQLite for one."""

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from data_prep.errors import UserError
from data_prep.storage import has_credentials
from study.search.journal import already_running, hold_file

PATIENCE_S = 10
"""Seconds after which a server that does not answer counts as away."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
"""Seconds before a server that is away is asked again: twice as many each time."""

T = TypeVar("T")


class Away(Exception):
    """The server is away, or went away before it answered: whether it did the work is not known.

    Not an error of SQLAlchemy: Optuna tries again after those, and could so create a trial twice.
    """


class Database(RDBStorage):
    """Optuna's storage in a database, which waits for a server that is away."""

    def __init__(self, address: URL, *, patience_s: float) -> None:
        """`patience_s`: seconds after which a server that is away is given up; the first connection waits for none."""
        self._address, self._patience_s = address, patience_s
        self._newest = -1  # id of the last trial that was created here
        self._gone: UserError | None = None
        self._held, self._lock = "", threading.Lock()
        self._lock_connection: sqlalchemy.Connection | None = None
        self._connections = self._connections_checked = 0
        # a connection that the server has closed since its last use is replaced
        options = {"pool_pre_ping": True, "connect_args": _connect_args(address)}
        super().__init__(address.render_as_string(), engine_kwargs=options)
        sqlalchemy.event.listen(self.engine, "handle_error", _raise_away)
        sqlalchemy.event.listen(self.engine, "connect", self._count_connection)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold the study `name` for this process; the server lets go when the process dies. Raises `UserError`."""
        if not _is_postgres(self._address):
            with hold_file(Path(f"{self._address.database}.{name.replace('/', '.')}.lock"), f"{name} in {self.shown}"):
                yield
            return
        self._held = name
        try:
            if not self._take_lock():
                raise already_running(f"{name} in {self.shown}")
            yield
        finally:
            self._held = ""
            if self._lock_connection is not None:
                self._lock_connection.close()

    @property
    def shown(self) -> str:
        """The database's address, for messages."""
        return self._address.set(drivername=self._address.get_backend_name()).render_as_string()

    def patiently(self, work: Callable[[], T], *, after: Callable[[], T | None] | None = None) -> T:
        """Return what `work` returns; where the server is away, try again until it is back. Raises `UserError`.

        `after`: called before `work` is tried again; what it returns, unless None, is what the first try has done.
        """
        if self._gone:
            raise self._gone
        deadline, pause = time.monotonic() + self._patience_s, FIRST_PAUSE_S
        failed = False
        while True:
            try:
                if failed and after and (done := after()) is not None:
                    return done
                result = work()
                self._keep_lock()
                return result
            except Away as error:
                failed = True
                if time.monotonic() + pause > deadline:
                    rule = f"must be a database that answers, {self.shown} was away for {self._patience_s:g} s"
                    self._gone = UserError(f"{rule}: {_reason(error)}", option="ledger")
                    raise self._gone from error
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    # --- what Optuna calls, and what may have been done although no answer came ---------------------------------------

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study and return its id."""

        def created() -> int | None:
            try:
                return RDBStorage.get_study_id_from_name(self, study_name or "")
            except KeyError:
                return None

        return self.patiently(lambda: RDBStorage.create_new_study(self, directions, study_name), after=created)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        def created() -> FrozenTrial | None:
            running = RDBStorage.get_all_trials(self, study_id, states=(TrialState.RUNNING,))
            attrs = template_trial.user_attrs if template_trial else {}
            return next((t for t in running if t._trial_id > self._newest and t.user_attrs == attrs), None)

        trial = self.patiently(lambda: RDBStorage._create_new_trial(self, study_id, template_trial), after=created)
        self._newest = trial._trial_id
        return trial

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state and values; return whether that was done."""

        def finished() -> bool | None:
            return True if RDBStorage.get_trial(self, trial_id).state == state else None

        return self.patiently(lambda: RDBStorage.set_trial_state_values(self, trial_id, state, values), after=finished)

    # --- the lock -----------------------------------------------------------------------------------------------------

    def _count_connection(self, *_: object) -> None:
        self._connections += 1

    def _keep_lock(self) -> None:
        """Take the lock again if a server that was started again has dropped it. Raises `Away` while it is not free."""
        with self._lock:
            if not self._held or self._connections == self._connections_checked:
                return
            connections = self._connections
            try:
                assert self._lock_connection is not None
                self._lock_connection.scalar(sqlalchemy.text("select 1"))
            except SQLAlchemyError as error:
                try:
                    taken = self._take_lock()
                except SQLAlchemyError as again:
                    raise Away(_reason(again)) from again
                if not taken:  # the old connection's, until the server notices; or another driver's
                    raise Away(f"another process holds {self._held}") from error
            self._connections_checked = connections

    def _take_lock(self) -> bool:
        """Connect for the lock, and return whether it was free."""
        if self._lock_connection is not None:
            self._lock_connection.invalidate()
            self._lock_connection.close()
        engine = sqlalchemy.create_engine(
            self._address,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args=_connect_args(self._address),
        )
        self._lock_connection = engine.connect()
        lock = sqlalchemy.text("select pg_try_advisory_lock(hashtextextended(:name, 0))")
        return bool(self._lock_connection.scalar(lock, {"name": self._held}))


def _waiting(method: Callable[..., T]) -> Callable[..., T]:
    """Return a method of `RDBStorage` that may be called twice, for `Database`: one that waits for the server."""

    @functools.wraps(method)
    def call(self: Database, *args: Any, **kwargs: Any) -> T:
        return self.patiently(lambda: method(self, *args, **kwargs))

    return call


for _method in (
    RDBStorage.set_study_user_attr,
    RDBStorage.set_study_system_attr,
    RDBStorage.get_study_id_from_name,
    RDBStorage.get_study_name_from_id,
    RDBStorage.get_study_directions,
    RDBStorage.get_study_user_attrs,
    RDBStorage.get_study_system_attrs,
    RDBStorage.get_all_studies,
    RDBStorage._set_trial_param,
    RDBStorage.get_trial_id_from_study_id_trial_number,
    RDBStorage._get_best_trial_id,
    RDBStorage.set_trial_intermediate_value,
    RDBStorage.set_trial_user_attr,
    RDBStorage.set_trial_system_attr,
    RDBStorage.get_trial,
    RDBStorage._get_trials,
):
    setattr(Database, _method.__name__, _waiting(_method))


def connect(url: str, *, patience_s: float = 0.0) -> Database:
    """Open a database and make Optuna's tables if they are missing. Raises `UserError`.

    `patience_s`: seconds after which a server that goes away later is given up.
    """
    address = _parse(url)
    try:
        return Database(address, patience_s=patience_s)
    except ImportError:
        raise UserError(f'needs a driver for {url}: pip install "zerosweep[postgres]"', option="ledger") from None
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        raise UserError(f"must be a database that answers, got {url}: {_reason(error)}", option="ledger") from error


def _raise_away(context: sqlalchemy.engine.ExceptionContext) -> None:
    """Raise `Away` in the place of an error that says that there is no connection (any more)."""
    if context.is_disconnect or context.connection is None:
        raise Away(_reason(context.original_exception)) from context.original_exception


def _parse(url: str) -> URL:
    if has_credentials(url):  # the value stays out of the message as well
        rule = "must be a URL without a password, which would be written to files: use ~/.pgpass or PGPASSWORD"
        raise UserError(rule, option="ledger")
    rule = "must be postgresql://USER@HOST/DATABASE or sqlite:///FILE"
    try:
        address = make_url(url)
    except ArgumentError:
        raise UserError(f"{rule}, got no URL: {url}", option="ledger") from None
    if _is_postgres(address):
        return address.set(drivername="postgresql+psycopg")
    if address.drivername != "sqlite" or not address.database:
        raise UserError(f"{rule}, got {url}", option="ledger")
    return address


def _is_postgres(address: URL) -> bool:
    return address.drivername in ("postgresql", "postgres", "postgresql+psycopg")


def _connect_args(address: URL) -> dict[str, Any]:
    return {"connect_timeout": PATIENCE_S} if _is_postgres(address) else {}


def _reason(error: BaseException) -> str:
    """Return the driver's own words, on one line."""
    return str(getattr(error, "orig", None) or error.__cause__ or error).strip().splitlines()[0]
