"""Start Ray, or use the one that runs."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data_prep.errors import UserError
from data_prep.storage import reason


@contextmanager
def _ray() -> Iterator[None]:
    """An initialised Ray: the caller's, or one of our own for the time of the build."""
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


@contextmanager
def quiet_loggers(*names: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """Let these loggers say nothing below `level`: Ray logs every step, and Ctrl-C in many lines."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)


def start_ray(address: str) -> None:
    """Connect to a cluster or, "local", start one. Raises UserError where that fails: Ray tells it in a traceback."""
    import ray

    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # ConnectionError, RuntimeError and plain Exception, by what went wrong
        raise UserError(f"Ray did not start (--address or RAY_ADDRESS, here {address}): {reason(error)}") from error
