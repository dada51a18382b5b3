"""A chapter's experiment on a public set: the commands, and in the full profile their runs."""

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from kdlab.classroom.setup import Profile
from kdlab.cli import main
from kdlab.commands.options import settle_task
from kdlab.commands.parsers import build_parser

PLACES = (Path(), Path(".."))  # the course's folder, from there or from among its notebooks


def find_data(needs: str) -> Path | None:
    """The folder of the data where it is there, from the working directory on; ``needs`` as :func:`on_real_data`'s."""
    return next((place / needs for place in PLACES if (place / needs).is_dir()), None)


def on_real_data(profile: Profile, needs: str, get: str, commands: Sequence[str]) -> bool:
    """Print ``kdlab`` commands; run them where the profile is full and the data is there.

    They are run one after the other in the course's folder. With ``--resume`` among their options they go on where
    they were interrupted, and what is finished is not trained again.

    Args:
        needs: the folder of the data, from the course's folder on.
        get: the command that brings it there.
        commands: as one would type them.

    Returns:
        Whether they were run.

    Raises:
        InputError: an option that does not fit another one.
        RuntimeError: a command failed; what it said is above.
    """
    words = [shlex.split(command)[1:] for command in commands]
    parser = build_parser()
    for given in words:
        settle_task(parser.parse_args(given))  # before the first of them has trained for an hour
    print(get, *commands, sep="\n")
    folder = find_data(needs)
    if folder is None or not profile.full:
        lacking = [f"{needs} is not here"] * (folder is None) + ["KDLAB_PROFILE is fast"] * (not profile.full)
        print(f"\nNot run: {', and '.join(lacking)}.")
        return False
    course = folder.parents[len(Path(needs).parts) - 1]
    with contextlib.chdir(course):
        for command, given in zip(commands, words, strict=True):
            print(f"\n$ {command}")
            if status := main(given):
                raise RuntimeError(f"{command} ended with status {status}; what it said is above.")
    return True
