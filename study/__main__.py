"""All commands under one name: `zerosweep run ...`, or `python -m study run ...`."""

import sys
from collections.abc import Callable
from importlib import import_module

from data_prep.errors import UserError, nearest, run_command

COMMANDS = {
    "run": ("study.run", "run a study: search, refit, score, report"),
    "predict": ("study.predict", "classify images with an adapter of a study"),
    "report": ("study.report", "write a study's report again"),
    "compare": ("study.compare", "rank several studies"),
    "prep": ("data_prep.__main__", "feature caches, class tables, WordNet"),
}
"""Module and purpose of each command."""

USAGE = "\n".join(
    [
        "usage: zerosweep COMMAND [OPTIONS]",
        "",
        "Search the hyperparameters of a zero-shot adapter of CLIP without ever looking at unseen labels.",
        "",
        *(f"  {name:<9}{purpose}" for name, (_, purpose) in COMMANDS.items()),
        "",
        "zerosweep COMMAND --help explains a command. To begin: zerosweep run --space sre",
    ]
)


def main() -> int:
    """Run the command that the first argument names; return its exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        return run_command(lambda: print(USAGE, flush=True))
    if name not in COMMANDS:
        return run_command(lambda: _refuse(name))
    sys.argv = [f"zerosweep {name}", *arguments]  # how its help and its records name it
    module, _ = COMMANDS[name]
    command: Callable[[], int] = import_module(module).main
    return command()


def _refuse(name: str) -> None:
    raise UserError(f"COMMAND must be one of {', '.join(COMMANDS)}; got {name!r}{nearest(name, list(COMMANDS))}")


if __name__ == "__main__":
    sys.exit(main())
