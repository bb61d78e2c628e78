"""SIGINT and SIGTERM end a command alike: one exception in the main thread, and an end within seconds.

Notebooks install none of this: there Ctrl-C is Python's own KeyboardInterrupt.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

PATIENCE_S = 7.0
"""Seconds from a signal to the end of the process, whatever its main thread does: Slurm and Kubernetes kill later."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end.

    A KeyboardInterrupt, because that is the only exception of a signal handler that Ray's C++ code passes on: after a
    SystemExit the process aborts.
    """


class Interrupts:
    """What a command knows of the signals that it got."""

    def __init__(self) -> None:
        self.signum: int | None = None
        """The first signal; None while there was none."""
        self.last_words = "interrupted"
        """What is said when the command ends for a signal: how to go on."""
        self._lock = threading.Lock()
        self._heard = threading.Event()
        self._deadline = threading.Timer(PATIENCE_S, self._end)
        self._deadline.daemon = True

    @property
    def exit_code(self) -> int:
        """Exit code of a command that a signal has ended: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + (self.signum or signal.SIGINT)

    def say(self) -> None:
        """Print the last words, once."""
        with self._lock:  # held while it prints: the other thread must not end the process before the words are out
            words, self.last_words = self.last_words, ""
            if words:
                print(words, file=sys.stderr, flush=True)

    def work_goes_on(self) -> None:
        """Let the command take its time to end, because it was asked to finish something first."""
        self._deadline.cancel()

    def note(self, signum: int) -> None:
        """Note a signal, if it is the first."""
        self.signum = self.signum or signum

    def receive(self, signum: int) -> None:
        """Note a signal; start the clock at the first one, and end the process at once at the second."""
        self.note(signum)
        if self._heard.is_set():
            self._end()
        self._heard.set()
        self._deadline.start()

    def caused(self, exit_: SystemExit) -> bool:
        """Return whether a signal is why somebody calls sys.exit; 0 and 2 are how options end a command."""
        return exit_.code not in (None, 0, 2) and self._heard.wait(0.2)  # the thread may be a moment behind

    def _end(self) -> None:
        """End the process here and now. The kernel ends a Ray that this process has started with it."""
        self.say()
        sys.stdout.flush()
        os._exit(self.exit_code)


interrupts = Interrupts()
"""Of this process, which has one main thread and runs one command."""


def from_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception is an interrupt, or came while one was dealt with.

    An interrupt inside of another library's clean-up may come out as the error of that clean-up.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Interrupted` in the main thread until the context ends.

    The clock starts on a thread, which Python wakes for every signal whoever handles it: Ray's C++ code may keep the
    main thread for longer than the patience of whoever sent the signal. Does nothing in other threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    before = {signum: signal.signal(signum, _interrupt) for signum in SIGNALS}
    wakeup = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(receiver,), daemon=True).start()
    try:
        yield
    finally:
        if interrupts.signum is None:  # after a signal the thread hears the second one until the process has ended
            for signum, handler in before.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(wakeup)
            os.close(sender)  # ends the thread


def _interrupt(signum: int, frame: FrameType | None) -> None:
    interrupts.note(signum)
    raise Interrupted


def _listen(receiver: int) -> None:
    """Pass signals on as they come; Python writes the number of each as a byte."""
    with open(receiver, "rb", buffering=0) as pipe:
        while received := pipe.read(64):
            for signum in received:
                if signum in SIGNALS:
                    interrupts.receive(signum)


@contextmanager
def handlers_stay() -> Iterator[None]:
    """Let what runs in the context install its own handlers of SIGINT and SIGTERM, and restore ours after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            if handler is not None:  # None: of C code, which Python cannot install again
                signal.signal(signum, handler)
