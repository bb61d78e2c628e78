"""`--ledger URL`: a search kept in a database, PostgreSQL for many or SQLite for one machine, instead of a journal."""

from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from data_prep.errors import UserError
from study.search.journal import lock

PATIENCE_S = 10
"""Seconds after which a server that does not answer counts as away."""


def connect(url: str) -> RDBStorage:
    """The database with Optuna's tables in it, made if they are missing. Raises `UserError`."""
    address = _parse(url)
    # a connection that the server has closed since its last use is replaced
    options = {"pool_pre_ping": True, "connect_args": _connect_args(address)}
    try:
        return RDBStorage(address.render_as_string(), engine_kwargs=options)
    except ImportError:
        raise UserError(f'--ledger needs a driver for {url}: pip install "zerosweep[postgres]"') from None
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        raise UserError(f"--ledger must be a database that answers, got {url}: {_reason(error)}") from error


def hold(url: str, name: str) -> Any:
    """Hold a study for this process until what is returned is closed; the server lets go when the process dies.

    Raises `UserError`.
    """
    address = _parse(url)
    if not _is_postgres(address):
        return lock(Path(f"{address.database}.{name.replace('/', '.')}.lock"), f"{name} in {url}")
    engine = sqlalchemy.create_engine(
        address, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=_connect_args(address)
    )
    connection = engine.connect()
    take = sqlalchemy.text("select pg_try_advisory_lock(hashtextextended(:name, 0))")
    if not connection.scalar(take, {"name": name}):
        connection.close()
        raise UserError(f"--name must be a study that nobody runs: another process holds {name} in {url}")
    return connection


def _parse(url: str) -> URL:
    wanted = "--ledger must be postgresql://USER@HOST/DATABASE or sqlite:///FILE"
    try:
        address = make_url(url)
    except ArgumentError:
        raise UserError(f"{wanted}, got no URL: {url}") from None
    if address.password or "password" in address.query:  # the value stays out of the message as well
        raise UserError("--ledger must be a URL without a password, which would be kept: use ~/.pgpass or PGPASSWORD")
    if _is_postgres(address):
        return address.set(drivername="postgresql+psycopg")
    if address.drivername != "sqlite" or not address.database:
        raise UserError(f"{wanted}, got {url}")
    return address


def _is_postgres(address: URL) -> bool:
    return address.drivername in ("postgresql", "postgres", "postgresql+psycopg")


def _connect_args(address: URL) -> dict[str, Any]:
    return {"connect_timeout": PATIENCE_S} if _is_postgres(address) else {}


def _reason(error: BaseException) -> str:
    """The driver's own words, on one line."""
    return str(getattr(error, "orig", None) or error.__cause__ or error).strip().splitlines()[0]
