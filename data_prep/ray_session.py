"""Start Ray, or use the one that runs, and keep its loggers quiet."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data_prep.errors import UserError
from data_prep.interrupts import handlers_stay
from data_prep.storage import reason


@contextmanager
def ray_session() -> Iterator[None]:
    """Hold an initialised Ray: the caller's, or one of our own until the context ends. Raises UserError."""
    import ray

    if ray.is_initialized():
        yield
        return
    # local: another cluster that happens to run on this machine is not ours
    start_ray(os.environ.get("RAY_ADDRESS", "local"))
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(address: str) -> None:
    """Connect to a cluster or, with "local", start one. Raises UserError where that fails."""
    import ray

    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        with handlers_stay():  # Ray's handler of SIGTERM calls sys.exit: the process would abort with a C++ stack
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # ConnectionError, RuntimeError and plain Exception, by what went wrong
        raise UserError(
            f"or RAY_ADDRESS must name a Ray that starts, got {address}: {reason(error)}", option="address"
        ) from error


@contextmanager
def quiet_loggers(*names: str, level: int = logging.ERROR) -> Iterator[None]:
    """Let the loggers of these names pass messages of `level` and above only, until the context ends."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)
