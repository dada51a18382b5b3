"""Room for Python's call stack in loops that call deep."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

ROOM = 2**15  # values on the stack, of 8 bytes


def with_room_for_frames(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, with all that it calls in one piece of Python's call stack.

    Since 3.11 Python keeps its frames in pieces of 16 KiB, and hands a piece back to the system as soon as it is empty.
    A loop whose calls pass the end of a piece asks for a new one each time and returns it, which also interrupts
    PyTorch's other threads. Where the ends lie depends on how deep the caller is. A notebook is deep enough: there it
    took about a fifth of the training of a network of many small layers (benchmarks/RESULTS.md).

    A frame that is larger than a piece gets a larger one, and what it leaves free is for the calls below it.

    Source: https://github.com/python/cpython/issues/142183, which some later versions of Python have mended.
    """

    def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        return function(*args, **options)

    call.__code__ = call.__code__.replace(co_stacksize=ROOM)
    return functools.wraps(function)(call)
