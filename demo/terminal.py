"""What the demo prints: headlines, commands, their output; in colour only on a terminal that wants it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

__all__ = ["command", "headline", "output", "say"]

_COLOURED = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def headline(text: str) -> None:
    """Begin a step."""
    _print(f"\n{_styled('1;36', f'== {text}')}")


def command(arguments: Sequence[str]) -> None:
    """Show a command as one would type it."""
    _print(f"{_styled('32', '$')} {_styled('1', shlex.join(arguments))}")


def output(text: str) -> None:
    """Show what a command said."""
    for line in text.splitlines():
        _print(f"  {line}")


def say(text: str) -> None:
    """Explain something."""
    _print(text)


def _print(text: str) -> None:
    # Flushed, so that what a failing step says on stderr comes after it.
    print(text, flush=True)


def _styled(style: str, text: str) -> str:
    return f"\033[{style}m{text}\033[0m" if _COLOURED else text
