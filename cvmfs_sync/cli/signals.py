"""Signals that end a command: at once, or in time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from cvmfs_sync.stopping import Stopping, Terminated

__all__ = ["raise_on_signals", "stop_on_signals"]

_ENDING = (signal.SIGTERM, signal.SIGINT)


def raise_on_signals() -> None:
    """Have the first signal raise `Terminated` or KeyboardInterrupt; later ones say that we are at it."""

    def interrupt(received: int, _frame: object) -> NoReturn:
        _handle(_already_stopping)
        raise Terminated if received == signal.SIGTERM else KeyboardInterrupt

    _handle(interrupt)


def stop_on_signals(stopping: Stopping) -> None:
    """Have the first signal ask for an end in time."""

    def stop(received: int, _frame: object) -> None:
        _handle(_already_stopping)
        stopping.request(Terminated() if received == signal.SIGTERM else KeyboardInterrupt())

    _handle(stop)


def _handle(handler: Callable[[int, FrameType | None], object]) -> None:
    """Handle the signals that end us, but those that whoever started us has us ignore."""
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _already_stopping(_signal: int, _frame: object) -> None:
    # An interrupted clean-up would leave what it was about to clean up. SIGKILL is always safe: the next run cleans up.
    os.write(2, b"cvmfs-sync: cleaning up; please wait\n")
