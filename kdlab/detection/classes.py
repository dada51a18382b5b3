"""Whether a detector and a data set are of the same classes."""

from collections.abc import Mapping
from typing import Any

from kdlab.errors import InputError


def check_classes(who: str, model: Any, names: Mapping[int, str]) -> None:
    """Refuse a detector for other classes than these; names that are only numbers fit any.

    Args:
        who: what the detector is called in the message.
        model: with ``names``, by number.

    Raises:
        InputError: with both lists.
    """
    known = dict(model.names)
    if len(known) != len(names) or (named(known) and known != dict(names)):
        raise InputError(
            f"the {who} knows {len(known)} classes ({_few(known)}), and the data set has {len(names)} ({_few(names)}); "
            f"wanted: the same, in the same order. Train the {who} on this data first."
        )


def named(names: Mapping[int, str]) -> bool:
    """Whether the classes have been named; a detector from a YAML counts them."""
    return any(str(number) != name for number, name in names.items())


def same_names(known: Mapping[int, str], names: Mapping[int, str]) -> dict[int, int]:
    """Of each of the ``names`` that is ``known``, in capitals or not: its number here, and there."""
    places = {name.strip().lower(): number for number, name in known.items()}
    keys = {number: name.strip().lower() for number, name in names.items()}
    return {number: places[key] for number, key in keys.items() if key in places}


def _few(names: Mapping[int, str]) -> str:
    return ", ".join(list(names.values())[:6]) + ", ..." * (len(names) > 6)
