"""Mistakes a user can mend, and the one way in which commands end."""

import difflib
import io
import os
import select
import sys
from collections.abc import Callable, Sequence

from data_prep.interrupts import interrupts, signals_interrupt

SHOWN = 5
"""Names in an error that could name hundreds."""


class UserError(ValueError):
    """A mistake in what the user gave: the message names the option or file, the rule and the value.

    `option`: Python name of the option in question; the message then begins with its rule ("must be ...").
    """

    def __init__(self, message: str, *, option: str = "") -> None:
        self.message, self.option = message, option
        super().__init__(self.on_command_line())  # tyro shows args[0] of what a dataclass of options raises

    def __str__(self) -> str:
        """Return the message for Python callers, who know the option by its Python name."""
        return f"{self.option} {self.message}" if self.option else self.message

    def on_command_line(self) -> str:
        """Return the message for people who typed the option."""
        return f"--{self.option.replace('_', '-')} {self.message}" if self.option else self.message

    def __reduce__(self) -> tuple[Callable[..., "UserError"], tuple[str, str]]:
        """Travel between processes with the option."""
        return _user_error, (self.message, self.option)


def _user_error(message: str, option: str) -> UserError:
    return UserError(message, option=option)


def some_of(names: Sequence[str]) -> str:
    """Return the first of these names in a line, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def nearest(given: str, valid: Sequence[str], *, cutoff: float = 0.0) -> str:
    """Return the valid name that is nearest to the one given, as an error ends with it; "" where none is near."""
    near = difflib.get_close_matches(given, valid, n=1, cutoff=cutoff)
    return f" (nearest: {near[0]})" if near else ""


def _nobody_reads() -> bool:
    """Return whether what reads the standard output has gone away; then nothing more is written to it."""
    asked = select.poll()
    asked.register(sys.stdout, 0)
    gone = any(event & select.POLLERR for _, event in asked.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def run_command(work: Callable[[], object]) -> int:
    """Run a command and return its exit code: 0 when it is done, 2 for a user's mistake, 130 or 143 after a signal.

    A user's mistake is one line on standard error. Any other exception passes: Python then shows its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without UTF-8 shows a name as far as it can
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with signals_interrupt():
            work()
    except UserError as error:
        print(f"error: {error.on_command_line()}", file=sys.stderr)
        if interrupts.signum is None:
            return 2
        interrupts.say()  # storage that failed on the way out: the signal is why the command ends
    except KeyboardInterrupt:
        interrupts.say()
        return interrupts.exit_code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 0  # as after `zerosweep run --help | head`
    except SystemExit as exit_:  # Ray's own handlers call it, where a signal comes while they are installed
        if not interrupts.caused(exit_):
            raise
        interrupts.say()
    return 0 if interrupts.signum is None else interrupts.exit_code
