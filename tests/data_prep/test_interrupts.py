"""SIGINT and SIGTERM end a command within seconds, whatever its main thread does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COMMAND = """
import signal, sys, time
from data_prep.errors import run_command
from data_prep.interrupts import handlers_stay, interrupts
def work():
    interrupts.last_words = "go on with --resume"
    interrupts._deadline.interval = {patience}
    {body}
sys.exit(run_command(work))
"""

RAY_S_OWN_HANDLERS = """with handlers_stay():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        print("ready", flush=True)
        time.sleep(60)"""


def start(body: str, *, patience: float = 30.0) -> subprocess.Popen[str]:
    """A command that has said that it is ready."""
    script = COMMAND.format(body=body, patience=patience)
    command = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert command.stdout and command.stdout.readline() == "ready\n"
    return command


def end(command: subprocess.Popen[str]) -> tuple[int, str]:
    error = command.communicate(timeout=20)[1]
    return command.returncode, error.strip()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("body", ['print("ready", flush=True); time.sleep(60)', RAY_S_OWN_HANDLERS])
def test_a_signal_ends_a_command_with_its_exit_code_and_last_words(signum: signal.Signals, body: str) -> None:
    command = start(body)
    command.send_signal(signum)
    assert end(command) == (128 + signum, "go on with --resume")


def test_work_that_is_finished_first_ends_with_the_signal_s_exit_code() -> None:
    body = """try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        interrupts.work_goes_on()
        time.sleep(1.0)"""
    command = start(body, patience=0.5)
    command.send_signal(signal.SIGTERM)
    assert end(command) == (143, "")  # who finishes the work says how to go on


def test_a_main_thread_that_does_not_listen_is_ended_after_a_while() -> None:
    body = """print("ready", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass"""
    command = start(body, patience=0.5)
    command.send_signal(signal.SIGTERM)
    assert end(command) == (143, "go on with --resume")


def test_a_second_signal_ends_a_command_at_once() -> None:
    body = """try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        time.sleep(60)"""
    command = start(body)
    command.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert command.poll() is None
    command.send_signal(signal.SIGTERM)
    assert end(command) == (130, "go on with --resume")


def test_handlers_are_the_caller_s_again_after_a_command() -> None:
    from data_prep.errors import run_command

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert run_command(lambda: None) == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_error_of_a_clean_up_that_an_interrupt_broke_off_is_an_interrupt() -> None:
    from data_prep.interrupts import from_interrupt

    with pytest.raises(FileNotFoundError) as caught:
        try:
            raise KeyboardInterrupt
        except BaseException:
            os.unlink("/no/such/file")  # as the lock of Optuna's journal does, where the file is gone already
    assert from_interrupt(caught.value) and from_interrupt(KeyboardInterrupt())
    assert not from_interrupt(FileNotFoundError()) and not from_interrupt(None)
