"""The suite's part of the fault matrix, and what Grafana draws; the whole matrix runs by hand (see `matrix.py`)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MATRIX = Path(__file__).parent / "matrix.py"
SIGNALS = Path(__file__).parent / "signals.py"


def test_no_configuration_is_lost_or_done_twice_when_a_node_is_killed_or_drained() -> None:
    done = subprocess.run(
        [sys.executable, str(MATRIX), "--once", "--only", "node_killed", "node_drained"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.by_hand
def test_a_study_ends_within_seconds_of_a_signal_and_goes_on_where_it_was() -> None:
    done = subprocess.run([sys.executable, str(SIGNALS), "--once"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_draws_what_is_published() -> None:
    from study.cluster import gauges as metrics

    panels = json.loads(Path(metrics.__file__).with_name("grafana.json").read_text())["panels"]
    drawn = {panel["targets"][0]["expr"].split("ray_zerosweep_")[1].split("{")[0] for panel in panels}
    source = Path(metrics.__file__).read_text()
    for name in drawn:
        assert f'"{name.removesuffix("_total")}"' in source.replace("zerosweep_", ""), name
    assert len(drawn) == 10
