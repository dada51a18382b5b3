"""The hashes of the files of a folder, in a file beside them, to know later whether they are still the same."""

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from kdlab.data.images import few, files_under, printable
from kdlab.errors import InputError
from kdlab.files import write_whole
from kdlab.progress import progress

MANIFEST = "SHA256SUMS"
"""As ``sha256sum -c`` reads it: on each line the hash of a file, two spaces, its path from the manifest's folder."""


class Differences(NamedTuple):
    """What is no longer as the manifest has it: the paths of the files."""

    missing: tuple[str, ...]
    changed: tuple[str, ...]

    def __str__(self) -> str:
        both = (("missing", self.missing), ("with other bytes", self.changed))
        return "; ".join(f"{len(names)} {what}: {few(names)}" for what, names in both if names) or "none"


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """In hexadecimal digits, by any algorithm of :mod:`hashlib`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def record(folder: Path, skip: Collection[str] = ()) -> dict[str, str]:
    """Write the manifest of a folder, or add the new files to the one that it has, and return all its hashes by path.

    What is recorded stays as it is, whatever has become of the file: :func:`differences` tells.

    Args:
        skip: files and folders directly in the folder that are left out. Hidden ones always are.

    Raises:
        InputError: a file cannot be read or the manifest not written; a name has a line break.
    """
    known = hashes(folder) if (folder / MANIFEST).exists() else {}
    names = [path.relative_to(folder).as_posix() for path in files_under(folder)[0]]
    new = [name for name in names if name not in known and name.split("/")[0] not in {MANIFEST, *skip}]
    if broken := [name for name in new if "\n" in name or "\r" in name]:
        raise InputError(f"the name of {broken[0]!r} in {printable(folder)} has a line break. Rename it.")
    known |= {name: _hash(folder / name) for name in progress(new, desc=f"hashing {folder.name}", unit="file")}
    lines = [f"{value}  {name}\n" for name, value in sorted(known.items())]
    if new or not (folder / MANIFEST).exists():
        write_whole(folder / MANIFEST, os.fsencode("".join(lines)))
    return known


def hashes(folder: Path) -> dict[str, str]:
    """The hashes in a folder's manifest, by path.

    Raises:
        InputError: there is none, or it is none.
    """
    path = folder / MANIFEST
    try:
        # Before they are decoded: a str also breaks at characters that a name may have.
        lines = [os.fsdecode(line) for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise InputError(
            f"{printable(path)} cannot be read ({error.strerror}), so nothing is known of what {printable(folder)} "
            "should hold. The script that makes or gets the folder writes it."
        ) from error
    entries = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
    found = {entry[2]: entry[1] for entry in entries if entry}
    if len(found) < len(lines):
        wrong = next(line for line, entry in zip(lines, entries, strict=True) if not entry)
        raise InputError(f"{printable(path)} has {wrong[:80]!r}; wanted: a hash, two spaces, a path. Delete the file.")
    return found


def differences(folder: Path) -> Differences:
    """Read every file again and compare. Files that are not in the manifest are left alone.

    Raises:
        InputError: there is no manifest, or a file cannot be read.
    """
    missing, changed = [], []
    for name, value in progress(hashes(folder).items(), desc=f"checking {folder.name}", unit="file"):
        if not (folder / name).is_file():
            missing.append(name)
        elif _hash(folder / name) != value:
            changed.append(name)
    return Differences(tuple(missing), tuple(changed))


def _hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}.") from error
