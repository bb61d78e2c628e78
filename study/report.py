"""The report: one HTML file that says what was searched, what won, whether to trust it, and what to try next.

It reads a study's files and computes next to nothing: what it shows was written by the final evaluation. To write it
anew, with an ablation or an oracle study of the same method beside it: `python study/report.py results/NAME`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not study/: its packages import by name


from data_prep.storage import locate  # noqa: E402
from study.reporting.report import write_report  # noqa: E402


def main(study: Path, /, *, beside: tuple[Path, ...] = ()) -> None:
    """Write the report of a finished study again.

    Args:
        study: Its folder.
        beside: Folders of ablation or oracle studies to show with it.
    """
    print(write_report(locate(study), beside=[locate(f) for f in beside]))


if __name__ == "__main__":
    import tyro

    try:
        tyro.cli(main)
    except ValueError as error:
        sys.exit(f"error: {error}")
