"""No step of any method waits for the host or mixes devices: every method trains on a fake accelerator."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_configs import CONFIGS, ENCODED


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    script = Path(__file__).with_name("fake_device.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ENCODED])
def test_a_method_trains_on_an_accelerator_without_waiting_for_the_host(said: dict[str, str], name: str) -> None:
    assert said[name] == "ok"


def test_the_check_can_fail(said: dict[str, str]) -> None:
    assert "asks_for_a_number" in said and said["asks_for_a_number"] != "ok"
    assert said["mixes_devices"] != "ok"
