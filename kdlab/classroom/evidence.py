"""The committed evidence tables."""

from pathlib import Path

import pandas as pd

import kdlab
from kdlab.errors import InputError

FOLDER = Path(kdlab.__file__).parents[1] / "benchmarks" / "evidence"


def read_evidence(chapter: str) -> pd.DataFrame:
    """The table of a chapter, one row a setting; its date, commit, machine and command stand in the file's head.

    Raises:
        InputError: kdlab is not installed from a clone, or the chapter has no table.
    """
    path = FOLDER / f"{chapter}.csv"
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; wanted: the table that `python benchmarks/evidence.py {chapter}` makes, in a "
            "clone of kdlab that is installed with `make setup` (pip install -e)."
        )
    return pd.read_csv(path, comment="#", dtype={"commit": str})  # else 2742e53 is read as a number
