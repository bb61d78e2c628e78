"""The four lines that a notebook user would write."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_four_lines(pva_study: Path, embedded_cache: Path) -> None:
    from study import load_benchmark, plot, read_leaderboard, show_leaderboard

    features = load_benchmark("icons2emoji", cache=str(embedded_cache.parent))
    table = read_leaderboard(pva_study)  # which run_study() made
    figure = plot(pva_study, "gain")
    assert len(features.classes.names) == 228
    assert set(table.feature_fingerprint) == {features.fingerprint} and "PVA" in set(table.method)
    shown = show_leaderboard(pva_study).to_html()
    assert "font-weight: bold" in shown and f"{100 * table.test_h_mean[0]:.2f}" in shown and "nan" not in shown
    best = table[(table.method == "PVA") & table.selected].iloc[0]
    assert {trace.y[0]: trace.x[0] for trace in figure.data}["PVA"] == pytest.approx(100 * best.h_gain)
    with pytest.raises(UserError, match="chart must be one of gain, configurations, .*; got 'pie'"):
        plot(pva_study, "pie")
    with pytest.raises(UserError, match="study must be the folder of a finished study, .* has no leaderboard.parquet"):
        read_leaderboard(pva_study / "adapters")


def test_unknown_options_and_bad_values_are_said_at_once() -> None:
    from study import run_study

    with pytest.raises(UserError, match="options must be those of the command line, got konfigs=3"):
        run_study(konfigs=3)
    with pytest.raises(ValueError, match="^configs must be at least 1, got 0"):
        run_study(configs=0)


def test_importing_the_package_is_quick() -> None:
    code = "import sys, study; assert not {'torch', 'ray', 'plotly', 'pandas'} & set(sys.modules); study.run_study"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
