"""The four lines that a notebook user would write."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_four_lines(ray_cluster: None, embedded_cache: Path, tmp_path: Path) -> None:
    from study import load_benchmark, plot, read_leaderboard, run_study

    features = load_benchmark("icons2emoji", cache=str(embedded_cache.parent))
    small = dict(configs=2, pack=2, epochs=1, folds=2, seeds=1, top=1, cpus_per_pack=2, refit_workers=0, quiet=True)
    folder = run_study(space="sre", storage=str(tmp_path), cache=str(embedded_cache.parent), name="four", **small)
    table = read_leaderboard(folder)
    figure = plot(folder, "gain")
    assert len(features.classes.names) == 228
    assert set(table.feature_fingerprint) == {features.fingerprint} and "SRE-CLIP" in set(table.method)
    best = table[table.method == "SRE-CLIP"].iloc[0]
    assert {trace.y[0]: trace.x[0] for trace in figure.data}["SRE-CLIP"] == pytest.approx(100 * best.h_gain)
    with pytest.raises(ValueError, match="chart must be one of gain, configurations, .*; got 'pie'"):
        plot(folder, "pie")


def test_unknown_options_and_bad_values_are_said_at_once() -> None:
    from study import run_study

    with pytest.raises(ValueError, match="options must be those of the command line, got konfigs=3"):
        run_study(konfigs=3)
    with pytest.raises(ValueError, match="--configs must be at least 1, got 0"):
        run_study(configs=0)


def test_importing_the_package_is_quick() -> None:
    code = "import sys, study; assert not {'torch', 'ray', 'plotly', 'pandas'} & set(sys.modules); study.run_study"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
