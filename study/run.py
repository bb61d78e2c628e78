"""Run a study: `python study/run.py --space sre`."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not study/: its packages import by name

from data_prep.command_line import parse  # noqa: E402
from data_prep.errors import UserError, run_command  # noqa: E402
from study.options import Options  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run a study; return 0 when it is done, 2 for a mistake in the options or files."""

    def study() -> None:
        options = parse(Options, arguments)
        check_names(options)
        if options.output.print_space or options.output.check_method:
            look_at_space(options)
            return
        if not options.resources.address:
            listen_on_loopback()
        from study.pipeline.study import Study  # torch and Ray take seconds: --help does not wait for them

        Study(options).run()

    return run_command(study)


def check_names(options: Options) -> None:
    """Check the names of spaces before torch and Ray are loaded. Raises `UserError`."""
    import search_spaces
    from search_spaces.changes import SUFFIXES

    study, baselines = options.study, options.search.baselines
    if study.plugin or study.rerun:  # which may bring others
        return
    given = [("baselines", name) for name in baselines.split(",") if name not in ("", "auto", "all", "none")]
    for option, name in [("space", study.space), *given]:
        if not name.endswith(SUFFIXES) and name not in search_spaces.names():
            search_spaces.load(name, option=option)


def look_at_space(options: Options) -> None:
    """Print the search space as YAML, or check its method; no Ray starts. Raises `UserError`."""
    from search_spaces import Ablation
    from search_spaces.changes import find_space, to_yaml
    from search_spaces.plugins import load_plugins

    load_plugins(options.study.plugin)
    found = find_space(options.study.space, options.study.set)
    space = found.space if isinstance(found, Ablation) else found
    if options.output.print_space:
        print(to_yaml(space), end="")
        return
    from study.training.check_method import check_method

    if wrong := check_method(space):
        raise UserError(
            f"must have a method that keeps the laws of packs; {space.method}:\n  " + "\n  ".join(wrong), option="space"
        )
    print(f"{space.method} keeps the laws of packs")


def listen_on_loopback() -> None:
    """Let a Ray that this process starts listen on this machine only. Before Ray is imported; not for clusters."""
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's name for it; works on Linux, too


if __name__ == "__main__":
    sys.exit(main())
