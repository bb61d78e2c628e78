"""Several studies in one ranking: `python study/compare.py results/*` writes comparison.parquet and comparison.html.

Rows are ranked within a task: a benchmark, its rotation, and the checkpoint. Mean ranks over tasks compare methods
where every one of them was run; with four benchmarks or more, the critical difference of Nemenyi's test says which mean
ranks differ (Demsar, 2006, Journal of Machine Learning Research 7).
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not study/: its packages import by name


from study.reporting.comparison import compare, comparison_page, load_studies  # noqa: E402


def main(studies: tuple[Path, ...], /, *, out: Path = Path(".")) -> None:
    """One leaderboard and one page over several studies.

    Args:
        studies: Folders of finished studies; others are passed over.
        out: Folder for comparison.parquet and comparison.html.
    """
    loaded = load_studies(studies)
    rows = compare(loaded)
    out.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(out / "comparison.parquet")
    (out / "comparison.html").write_text(comparison_page(loaded, rows))
    print(rows[["task", "rank", "method", "study", "test_h_mean", "h_gain"]].to_string(index=False))
    print(out / "comparison.html")


if __name__ == "__main__":
    import tyro

    try:
        tyro.cli(main)
    except ValueError as error:
        sys.exit(f"error: {error}")
