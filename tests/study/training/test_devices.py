"""No method mixes devices, and no epoch waits for the host: every method lives its life on a fake accelerator.

It is trained, scored, swept, pruned, joined, restored and divided there, with the results of a CPU.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_configs import CONFIGS, ENCODED

LAID_OUT = "3 host syncs in epochs"
"""Of a pack that starts, that others join and that is pruned: classes to prompt are laid out when lanes come and go."""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    script = Path(__file__).with_name("fake_device.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_method_has_the_results_of_a_cpu_and_no_step_waits_for_the_host(said: dict[str, str], name: str) -> None:
    assert said[name] == (LAID_OUT if name in ENCODED else "ok")


def test_the_check_can_fail(said: dict[str, str]) -> None:
    assert said["asks for a number"] == "10 host syncs in epochs"
    assert "expected all tensors to be on the same device" in said["mixes devices"]
