"""What loads no torch: it takes seconds to import, and actors that judge or store start in a fraction of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "pandas", "ray")


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh process has loaded after `code`."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "code",
    [
        "import data_prep.errors, data_prep.options, data_prep.storage, data_prep.parquet",
        "from data_prep import FeatureOptions, UserError",
        "import search_spaces; assert 'sre' in search_spaces.names()",
        "import study, study.options",
    ],
)
def test_light_modules_load_no_heavy_package(code: str) -> None:
    assert not modules_after(code) & set(HEAVY)


@pytest.mark.parametrize("module", ["study.cluster.coordinator", "study.cluster.checkpoint_store"])
def test_actors_that_compute_nothing_load_no_torch(module: str) -> None:
    assert not modules_after(f"import {module}") & {"torch", "transformers", "pandas"}


@pytest.mark.parametrize(
    "run",
    [
        "run_path('study/run.py', run_name='__main__')",
        "run_path('study/predict.py', run_name='__main__')",
        "run_path('study/report.py', run_name='__main__')",
        "run_path('study/compare.py', run_name='__main__')",
        "run_module('data_prep', run_name='__main__')",
    ],
)
def test_help_loads_no_heavy_package(run: str) -> None:
    code = f"""
import runpy
sys.argv = ["command", "--help"]
try:
    runpy.{run}
except SystemExit as end:
    assert not end.code, end.code
"""
    assert not modules_after(code) & set(HEAVY)
