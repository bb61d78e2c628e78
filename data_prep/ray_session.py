"""Start Ray, or use the one that runs, and keep its loggers quiet."""

import logging
import os
import socket
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from data_prep.errors import UserError
from data_prep.interrupts import handlers_stay
from data_prep.storage import reason

CONNECT_S = 10
"""Seconds in which the head of a cluster must answer."""

SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
"""Longest path of a Unix socket."""


@contextmanager
def ray_session() -> Iterator[None]:
    """Hold an initialised Ray: the caller's, or one of our own until the context ends. Raises UserError."""
    import ray

    if ray.is_initialized():
        yield
        return
    # local: another cluster that happens to run on this machine is not ours
    start_ray(os.environ.get("RAY_ADDRESS") or "local")
    try:
        yield
    finally:
        ray.shutdown()


def own_ray() -> bool:
    """Return whether this process started the Ray that is initialised: it never gets other nodes than this machine."""
    import ray

    node = ray._private.worker._global_node  # no public name
    return node is not None and node.is_head()


def draining_nodes() -> Collection[str]:
    """Return the ids of the nodes that are about to leave the cluster."""
    import ray

    return ray._private.state.state.get_draining_nodes()  # no public name; Ray's own Data and Train ask this way


def start_ray(address: str, *, modules: Sequence[ModuleType] = (), dashboard: bool = False) -> str:
    """Connect to a cluster or, with "local", start one; return its dashboard's address, "" if it has none.

    Raises UserError where that fails. `modules`: those that Ray is to bring to all workers, since their nodes may lack
    them. `dashboard`: whether a Ray of our own serves one.

    An address where no Ray answers is known within half a minute: Ray itself tries for several minutes.
    """
    if address == "local":
        _check_socket_paths()
    elif address != "auto":  # Ray looks for processes of this machine
        _require_answer(address)
    try:
        return _init(address, modules, dashboard=dashboard)
    except Exception as error:  # ConnectionError, RuntimeError and plain Exception, by what went wrong
        if token_file := _unwritable_token_file(error):
            rule = "must be in a folder that can be written, for Ray's token: set HOME to one"
            raise UserError(f"{token_file} {rule} ({reason(error)})") from error
        raise _no_ray(address, reason(error)) from error


def _init(address: str, modules: Sequence[ModuleType], *, dashboard: bool) -> str:
    """Call `ray.init` and return the dashboard's address.

    A Ray of our own is tried twice, since its start times out where the machine is busy.
    """
    import ray

    own: dict[str, Any] = {"include_dashboard": dashboard} if address == "local" else {}
    if modules:
        own["runtime_env"] = {"py_modules": list(modules)}
    for last in (False, True):
        try:
            with handlers_stay():  # Ray's handler of SIGTERM calls sys.exit: the process would abort with a C++ stack
                context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
            return getattr(context, "dashboard_url", None) or ""
        except Exception as error:  # Ray's own timeout is a plain Exception
            if last or address != "local" or "timed out" not in str(error):
                raise
            ray.shutdown()
    raise AssertionError("the last try returns or raises")


def _no_ray(address: str, why: str) -> UserError:
    return UserError(f"or RAY_ADDRESS must name a Ray that starts, got {address}: {why}", option="address")


def _require_answer(address: str) -> None:
    """Check that a gRPC server, as Ray's head is, answers at HOST:PORT or ray://HOST:PORT. Raises UserError."""
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    if scheme not in ("", "ray") or not host or not port.isdigit():
        example = "; http://HOST:8265 is for `ray job submit`" if scheme.startswith("http") else ""
        rule = f"or RAY_ADDRESS must be HOST:PORT, ray://HOST:PORT or auto, got {address!r}{example}"
        raise UserError(rule, option="address")
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as connection:
                if "RAY_USE_TLS" not in os.environ:
                    _require_grpc(connection, address)
            return
        except OSError as error:
            if time.monotonic() + 1 > deadline:
                raise _no_ray(address, f"no answer within {CONNECT_S} s: {reason(error)}") from error
            time.sleep(1)  # a head that is starting


def _require_grpc(connection: socket.socket, address: str) -> None:
    """Check that the other side begins as gRPC servers do, with HTTP/2's settings. Raises UserError, OSError."""
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # an empty frame of type 4
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
    answer = b""
    while len(answer) < len(settings) and (more := connection.recv(len(settings) - len(answer))):
        answer += more
    if answer[3:4] != settings[3:4]:
        raise _no_ray(address, "what answers there is no Ray head")


def _check_socket_paths() -> None:
    """Check that the sockets of a Ray of our own have paths that the system takes. Raises UserError."""
    folder = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    below = f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    room = SOCKET_PATH_BYTES - len(below)
    if len(os.fsencode(folder)) > room:
        raise UserError(
            f"RAY_TMPDIR or TMPDIR must be a path of {room} bytes at most, since Ray's sockets lie in it, "
            f"got {len(os.fsencode(folder))}: {folder}; set RAY_TMPDIR to a shorter one, such as /tmp"
        )


def _unwritable_token_file(error: BaseException) -> Path | None:
    """Return the file in which Ray keeps its token, if an error is about that file."""
    about = isinstance(error, OSError) and ".ray" in Path(str(error.filename)).parts
    return Path.home() / ".ray" / "auth_token" if about else None


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
