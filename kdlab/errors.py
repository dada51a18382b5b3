"""The errors that kdlab raises, and what is said of a name that was meant, and of others' errors."""

from collections.abc import Iterable
from difflib import get_close_matches

GET_YOLO = "get it in kdlab's folder by: python -m pip install -c constraints.txt -e '.[lab,yolo]'"


class InputError(ValueError):
    """Something given to kdlab cannot be used. The message says what was given, what was expected and what to do."""


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite. The message says which, and at which step; the saved checkpoints are untouched."""


def first_line(error: BaseException) -> str:
    """The first line of the message of any error; its type's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """The sentence for a name that does not exist: what was given, the nearest names, else all of them.

    >>> unknown("layer", "clasifier", ["features", "classifier"])
    "unknown layer 'clasifier'. Did you mean 'classifier'?"
    """
    known = list(known)
    near = get_close_matches(given, known, n=3, cutoff=0.6)
    if near:
        return f"unknown {kind} {given!r}. Did you mean {' or '.join(map(repr, near))}?"
    shown = ", ".join(map(repr, known[:20])) + (", ..." if len(known) > 20 else "")
    return f"unknown {kind} {given!r}. Known: {shown}."
