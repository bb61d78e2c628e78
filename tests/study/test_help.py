"""The help of every command: whole lines, no Python words, and every option has a text."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import search_spaces
from study.options import StudyOptions

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "study/run.py": 50,
    "study/predict.py": 8,
    "study/report.py": 1,
    "study/compare.py": 1,
    "-m data_prep features": 10,
    "-m data_prep verify": 3,
    "-m data_prep classes": 3,
}
"""And how many options they have at least."""


def help_of(command: str, width: int) -> str:
    environment = os.environ | {"COLUMNS": str(width), "NO_COLOR": "1"}
    arguments = [sys.executable, *command.split(), "--help"]
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str, width: int) -> None:
    done = help_of(command, width)
    boxes = [line for line in done.splitlines() if line.startswith(("│", "╭", "╰"))]
    assert {len(line) for line in boxes} <= set(range(width + 1))
    assert "None" not in done and "\x1b[" not in done
    assert sum(line.startswith("│ -") for line in boxes) >= COMMANDS[command]


@pytest.mark.parametrize("width", [80, 120])
def test_a_text_is_broken_only_where_the_next_word_does_not_fit(width: int) -> None:
    done = help_of("study/run.py", width)
    line = next(line for line in done.splitlines() if "--benchmark STR" in line)
    text = StudyOptions.__annotations__["benchmark"].__metadata__[0].help
    column = line.index(text.split()[0])
    for expected in textwrap.wrap(text, width - column - 2):
        assert any(expected == line[column:-1].strip() for line in done.splitlines()), expected


def test_the_spaces_that_the_help_names_are_there() -> None:
    texts = StudyOptions.__annotations__["space"].__metadata__[0].help
    named = {name for name in search_spaces.shipped() if f" {name}," in texts or f" {name};" in texts}
    assert named >= {"sre", "pva", "pva-prompts", "sre-ablation", "pva-ablation", "tip-adapter-f"}
