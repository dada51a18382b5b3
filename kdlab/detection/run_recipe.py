"""What a run in a folder was asked for: kept there when it begins, and compared when it is gone on with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdlab.errors import InputError
from kdlab.files import write_whole

RECIPE = "recipe.json"


def keep_recipe(out: Path, recipe: Mapping[str, Any]) -> None:
    write_whole(out / RECIPE, json.dumps(recipe, indent=2).encode())


def check_recipe(out: Path, recipe: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that is not the one that is asked for.

    Raises:
        InputError: with the settings that differ; also a run of another program.
    """
    if not (out / RECIPE).is_file():
        raise InputError(f"{out} holds a run without {RECIPE}, which says what it is. Train into another folder.")
    had, now = json.loads((out / RECIPE).read_bytes()), json.loads(json.dumps(recipe))
    names = [name for name in {**had, **now} if had.get(name) != now.get(name)]
    if names:
        changed = "; ".join(f"{name} was {had.get(name)!r}, now {now.get(name)!r}" for name in names)
        raise InputError(
            f"{out} holds a run with other settings: {changed}. Resume with the same settings, or train into another "
            "folder."
        )
