"""One name for all commands, and what a pipe that closes early does to them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from study.__main__ import COMMANDS
from study.outputs.provenance import command

ROOT = Path(__file__).resolve().parents[2]


def zerosweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "study", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_it_lists_and_finds_its_commands() -> None:
    listed = zerosweep()
    assert listed.returncode == 0 and all(f"\n  {name}" in listed.stdout for name in COMMANDS)
    for name in COMMANDS:
        help_ = zerosweep(name, "--help")
        assert help_.returncode == 0 and help_.stdout.startswith(f"usage: zerosweep {name} "), help_.stderr


def test_an_unknown_command_names_the_nearest() -> None:
    done = zerosweep("rum")
    assert done.returncode == 2
    assert done.stderr == f"error: COMMAND must be one of {', '.join(COMMANDS)}; got 'rum' (nearest: run)\n"


def test_records_name_the_command_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["zerosweep run", "--name", "a b"])
    assert command() == "zerosweep run --name 'a b'"
    monkeypatch.setattr(sys, "argv", ["study/run.py", "--space", "sre"])
    assert command() == "python study/run.py --space sre"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    text = f"{sys.executable} -m study run --help | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", text], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("usage: zerosweep run")


def test_the_list_of_commands_needs_no_reader() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "study"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 0 and done.stderr == ""
