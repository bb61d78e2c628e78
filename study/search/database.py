"""A ledger in a database instead of a journal: PostgreSQL for many machines, SQLite for one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from data_prep.errors import UserError
from data_prep.storage import has_credentials
from study.search.journal import already_running, hold_file

PATIENCE_S = 10
"""Seconds after which a server that does not answer counts as away."""


def connect(url: str) -> RDBStorage:
    """Open a database and make Optuna's tables if they are missing. Raises `UserError`."""
    address = _parse(url)
    # a connection that the server has closed since its last use is replaced
    options = {"pool_pre_ping": True, "connect_args": _connect_args(address)}
    try:
        return RDBStorage(address.render_as_string(), engine_kwargs=options)
    except ImportError:
        raise UserError(f'needs a driver for {url}: pip install "zerosweep[postgres]"', option="ledger") from None
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        raise UserError(f"must be a database that answers, got {url}: {_reason(error)}", option="ledger") from error


@contextmanager
def hold(url: str, name: str) -> Iterator[None]:
    """Hold the study `name` for this process; the server lets go when the process dies. Raises `UserError`."""
    address = _parse(url)
    if not _is_postgres(address):
        with hold_file(Path(f"{address.database}.{name.replace('/', '.')}.lock"), f"{name} in {url}"):
            yield
        return
    engine = sqlalchemy.create_engine(
        address, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=_connect_args(address)
    )
    with engine.connect() as connection:
        lock = sqlalchemy.text("select pg_try_advisory_lock(hashtextextended(:name, 0))")
        if not connection.scalar(lock, {"name": name}):
            raise already_running(f"{name} in {url}")
        yield


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
