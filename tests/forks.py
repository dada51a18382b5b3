"""Children of a program that has made its imports: a start takes milliseconds, and a kill ends a child alone."""

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any


def start(work: Callable[..., object], *arguments: object) -> int:
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def wait(child: int) -> str:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "killed" if status == -signal.SIGKILL else "finished" if status == 0 else f"failed with {status}"


def die(work: Callable[..., object], argument: object, owner: Any, call: str, count: int) -> None:
    """Work until this function has been called so often."""
    original, calls = getattr(owner, call), []

    def counted(*arguments: object, **options: object) -> None:
        original(*arguments, **options)
        calls.append(arguments)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, call, counted)
    work(argument)
