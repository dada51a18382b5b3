"""How a program ends before its time."""

import contextlib
import os
import sys

INTERRUPTED, CLOSED_PIPE, TERMINATED = 130, 141, 143  # as shells report the signals


def drop_output() -> None:
    """Send what is still buffered nowhere, or Python complains about it at its end."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
