"""Write a study's report again: one HTML file that says what was searched, what won, and whether to trust it.

`python study/report.py results/NAME` reads the study's files and computes next to nothing: the final evaluation has
written what the report shows.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not study/: its packages import by name

import tyro  # noqa: E402

from data_prep.command_line import CONFIG  # noqa: E402
from data_prep.errors import run_command  # noqa: E402


def report(study: Path, /, *, beside: tuple[Path, ...] = ()) -> None:
    """Write the report of a finished study again.

    Args:
        study: Its folder.
        beside: Folders of ablation or oracle studies to show with it.
    """
    from data_prep.storage import locate  # with plotly, pandas and torch seconds: --help does not wait for them
    from study.reporting.report import write_report

    print(write_report(locate(study), beside=[locate(folder) for folder in beside]))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(lambda: tyro.cli(report, args=arguments, config=CONFIG))


if __name__ == "__main__":
    sys.exit(main())
