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


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"OMP_WAIT_POLICY": "active"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
@pytest.mark.parametrize("package", ["data_prep.storage", "study.cluster.coordinator"])
def test_threads_of_torch_soon_sleep_if_nobody_says_else(package: str, given: dict[str, str], spins: str) -> None:
    code = f"import os, {package}, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"PYTHONPATH": str(ROOT)} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [spins, "False"]


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
