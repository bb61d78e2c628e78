"""Ray's start: what cannot work is one line within seconds."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data_prep import ray_session
from data_prep.errors import UserError
from data_prep.ray_session import start_ray


@contextmanager
def server(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Answer each connection to a port of this machine; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that Ray was asked for; none is started."""
    requested: list[str] = []

    def init(*, address: str, **_: Any) -> None:
        requested.append(address)

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(ray_session, "CONNECT_S", 1)
    return requested


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "must be HOST:PORT, ray://HOST:PORT or auto, got ''"),
        ("http://127.0.0.1:8265", "got 'http://127.0.0.1:8265'; http://HOST:8265 is for `ray job submit`"),
        ("127.0.0.1", "must be HOST:PORT, ray://HOST:PORT or auto, got '127.0.0.1'"),
        ("127.0.0.1:1", "must name a Ray that starts, got 127.0.0.1:1: no answer within 1 s"),
        ("ray://127.0.0.1:1", "no answer within 1 s"),
        ("no-such-host.invalid:6379", "no answer within 1 s"),
    ],
)
def test_an_address_where_nobody_answers_is_one_line_at_once(address: str, message: str, no_ray: list[str]) -> None:
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        start_ray(address)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("address or RAY_ADDRESS must") and not no_ray
    assert time.monotonic() - started < 10


def test_an_address_where_somebody_else_answers(no_ray: list[str]) -> None:
    held: list[socket.socket] = []
    with server(held.append) as address, pytest.raises(UserError, match="no answer within 1 s: timed out"):
        start_ray(address)  # a head that hangs
    with (
        server(lambda c: c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as address,
        pytest.raises(UserError, match="what answers there is no Ray head"),
    ):
        start_ray(address)
    assert not no_ray
    with server(lambda c: c.sendall(bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + bytes(6))) as address:
        start_ray(address)
    assert no_ray == [address]


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, no_ray: list[str]) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with ray_session.ray_session():
        assert no_ray == ["local"]


def test_paths_too_long_for_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_ray: list[str]) -> None:
    monkeypatch.setenv("TMPDIR", f"{tmp_path}/{'x' * 100}")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with pytest.raises(UserError, match=r"TMPDIR must be a path of \d\d bytes at most.*set RAY_TMPDIR to a shorter"):
        start_ray("local")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    start_ray("local")
    assert no_ray == ["local"]


def test_a_local_ray_that_times_out_is_started_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def init(*, address: str, **_: Any) -> None:
        calls.append(address)
        if len(calls) % 2:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr("ray.init", init)
    start_ray("local")
    assert calls == ["local", "local"]

    def fail(**_: Any) -> None:
        calls.append("")
        raise RuntimeError("broken")

    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(UserError, match="must name a Ray that starts, got local: broken"):
        start_ray("local")
    assert len(calls) == 3


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    def init(**_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / ".ray"))

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(UserError, match=f"{tmp_path}/.ray/auth_token must be in a folder that can be written.*HOME"):
        start_ray("local")
