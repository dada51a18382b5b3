"""The command line: ``kdlab teach``, ``distill``, ``evaluate``, ``predict``, ``restore``, ``reproduce``,
``yolo`` and ``doctor``.

The commands are in :mod:`kdlab.commands`, and in ``parsers`` there what each can be told.
"""

import argparse
import contextlib
import errno
import io
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence

from kdlab import InputError, NonFiniteLossError
from kdlab.commands.endings import CLOSED_PIPE, INTERRUPTED, TERMINATED, drop_output
from kdlab.commands.options import settle_task
from kdlab.commands.parsers import build_parser
from kdlab.commands.yolo_options import TRAINED
from kdlab.errors import first_line

WRONG = 2  # the exit status of what cannot be used
NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)  # torch's words for it
# And for a loading process that is lost. (A graphics processor has a shared memory, too.)
NO_WORKER = re.compile(r"shared memory ?(\(shm\)|object)|DataLoader worker .* (killed|exited)|DataLoader timed out")


class Terminated(KeyboardInterrupt):
    """SIGTERM: Slurm, ``docker stop`` and ``timeout`` send it, before they end a process without asking."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; what cannot be used is one message on stderr and status 2."""
    args = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter of a file's name
    warnings.filterwarnings("ignore", module=r"PIL\b")  # of images that it has read; they name no file
    try:
        settle_task(args)
        with _told_of_the_end(), _warnings_as_messages():
            status = _run(args)
        sys.stdout.flush()  # a reader that has gone away is noticed here, and not while Python shuts down
        return status
    except (InputError, NonFiniteLossError) as error:
        return _fail(_own_words(error), WRONG)
    except BrokenPipeError:
        drop_output()
        return CLOSED_PIPE
    except (KeyboardInterrupt, RuntimeError, OSError, EOFError, MemoryError) as error:
        end = _interruption(error)
        if end is not None:
            resume = "" if args.command == "reproduce" else " with --resume"
            hint = f". The same command{resume} goes on after the last whole epoch." if _trains(args) else "."
            terminated = isinstance(end, Terminated)
            what, status = ("terminated", TERMINATED) if terminated else ("interrupted", INTERRUPTED)
            return _fail(f"{what}{hint}", status)
        shortage = _shortage(error, getattr(args, "workers", 0) or 0)
        if shortage is None:
            raise
        drop_output()
        return _fail(shortage, WRONG)


def _own_words(error: Exception) -> str:
    """The message, without the traceback that PyTorch puts before it when the error comes from a loading process."""
    text = str(error)
    return text.rpartition(f"\n{InputError.__module__}.InputError: ")[2].strip() if text.startswith("Caught") else text


@contextlib.contextmanager
def _told_of_the_end() -> Iterator[None]:
    """SIGTERM is raised as :class:`Terminated` in here. Processes that torchrun has started end by its rules."""
    if "RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _warnings_as_messages() -> Iterator[None]:
    """A warning is shown in here without the place in the source, which says nothing to a user."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"kdlab: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """What it came of, if of a signal: while that ends the training, PyTorch sees that loading processes have ended."""
    if error is None or isinstance(error, KeyboardInterrupt):
        return error
    return _interruption(error.__context__)


def _shortage(error: BaseException, workers: int) -> str | None:
    """What the machine has run out of, and what to do; None for any other error.

    Args:
        workers: how many processes load images.
    """
    lost = isinstance(error, ConnectionError | EOFError)  # the other end of a pipe to one of them
    if workers and (lost or NO_WORKER.search(str(error))):
        return (
            f"a process that loads images has ended, or waits for shared memory ({first_line(error)}). What was saved "
            "before is untouched; run again with fewer --workers (0 loads in this process), or give the machine more "
            "memory (a container: --shm-size)."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" for {error.filename}" if error.filename else ""
        return f"the disk is full{where}. What was saved before is untouched; make room, then run again."
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return (
            f"out of memory ({first_line(error)}). What was saved before is untouched; run again with "
            "a smaller --batch-size, smaller images or a narrower network."
        )
    return None


def _fail(message: object, status: int) -> int:
    place = int(os.environ.get("RANK", "0"))  # among the processes that torchrun has started
    print(f"kdlab{f' (process {place})' if place else ''}: {message}", file=sys.stderr)
    return status


def _trains(args: argparse.Namespace) -> bool:
    return args.command in ("teach", "distill", "reproduce") or getattr(args, "step", None) in TRAINED


def _run(args: argparse.Namespace) -> int:
    # Imported only now: PyTorch takes seconds to load, and --help shall answer at once.
    if not _trains(args):
        return _command(args)
    from kdlab.processes import joined_by_torchrun

    with joined_by_torchrun():
        return _command(args)


def _command(args: argparse.Namespace) -> int:
    match args.command:
        case "teach":
            from kdlab.commands.train import teach as command
        case "distill":
            from kdlab.commands.train import distill as command
        case "evaluate":
            from kdlab.commands.evaluate import evaluate as command
        case "predict":
            from kdlab.commands.predict import predict as command
        case "restore":
            from kdlab.commands.restore import restore_images as command
        case "reproduce":
            from kdlab.commands.reproduce import reproduce as command
        case "yolo":
            from kdlab.commands.yolo import run_step as command
        case _:
            from kdlab.doctor import report

            return report()
    return command(args)
