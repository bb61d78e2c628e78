"""A PostgreSQL server on a socket in a folder of its own: no port is opened."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PostgresServer:
    """A server that runs."""

    url: str
    """Where it answers."""
    call: Callable[..., None]
    """Calls one of its programs with its data folder and more arguments."""
    start: tuple[str, ...]
    """Arguments of pg_ctl that start it."""

    def restart(self, *, away_s: float) -> None:
        """Kill the server, and start it again after some seconds."""
        self.call("pg_ctl", "--silent", "--mode=immediate", "stop")
        time.sleep(away_s)
        self.call("pg_ctl", *self.start)


def programs() -> list[Path]:
    """Return the pg_ctl programs of this machine; none where PostgreSQL is not installed."""
    return [Path(p) for p in (shutil.which("pg_ctl"), *Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")) if p]


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server until the context ends."""
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder = tempfile.mkdtemp(prefix="pg")  # sockets have short paths
    pg_ctl = programs()[0].resolve()

    def call(program: str, *arguments: str) -> None:
        command = [str(pg_ctl.with_name(program)), "-D", f"{folder}/data", *arguments]
        subprocess.run(command, check=True, user=user, group=user, cwd=folder, stdout=subprocess.DEVNULL)

    try:
        if user:
            shutil.chown(folder, user=user)
        call("initdb", "--username=zerosweep", "--auth=trust", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        start = ("--wait", "--silent", f"--log={folder}/log", f"--options={options}", "start")
        call("pg_ctl", *start)
        yield PostgresServer(url=f"postgresql://zerosweep@/postgres?host={folder}", call=call, start=start)
        call("pg_ctl", "--silent", "--mode=immediate", "stop")
    finally:
        shutil.rmtree(folder)
