"""Run a study: `python study/run.py --space sre`."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not study/: its packages import by name

import tyro  # noqa: E402

from data_prep.errors import run_command  # noqa: E402
from study.options import Options  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run a study; return 0 when it is done, 2 for a mistake in the options or files."""

    def study() -> None:
        options = tyro.cli(Options, args=arguments, description=Options.__doc__)
        if not options.resources.address:
            listen_on_loopback()
        from study.pipeline.study import Study  # torch and Ray take seconds: --help does not wait for them

        Study(options).run()

    return run_command(study)


def listen_on_loopback() -> None:
    """Let a Ray that this process starts listen on this machine only. Before Ray is imported; not for clusters."""
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's name for it; works on Linux, too


if __name__ == "__main__":
    sys.exit(main())
