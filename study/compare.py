"""Compare studies: `python study/compare.py results/*` writes comparison.parquet and comparison.html.

Rows are ranked within a task: a benchmark, its rotation, and the checkpoint. Mean ranks over tasks compare methods
where every one of them was run; with four benchmarks or more, the critical difference of Nemenyi's test says which mean
ranks differ (Demsar, 2006, Journal of Machine Learning Research 7).
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not study/: its packages import by name

import tyro  # noqa: E402

from data_prep.command_line import CONFIG  # noqa: E402
from data_prep.errors import run_command  # noqa: E402


def compare(studies: tuple[Path, ...], /, *, out: Path = Path(".")) -> None:
    """One leaderboard and one page over several studies.

    Args:
        studies: Folders of finished studies; others are passed over.
        out: Folder for comparison.parquet and comparison.html.
    """
    from study.reporting.comparison import write_comparison  # with plotly, pandas and torch seconds

    print(write_comparison(studies, out))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(lambda: tyro.cli(compare, args=arguments, config=CONFIG))


if __name__ == "__main__":
    sys.exit(main())
