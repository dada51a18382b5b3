"""Unpacking of archives from strangers: nothing outside the target, nothing endless, nothing by halves."""

import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from kdlab.data.images import few, printable
from kdlab.data.new_folder import new_folder
from kdlab.errors import InputError
from kdlab.progress import progress

MOST_FILES = 2_000_000
MOST_TIMES = 50  # images hardly shrink in an archive, and lists of names to a tenth
BLOCK = 2**20
FREE_OF_LIMIT = 100 * BLOCK  # bytes that a small archive may hold, however small it is

DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError)


class DamagedArchiveError(InputError):
    """An archive cannot be read to its end: another copy of it may."""


class _Member(NamedTuple):
    """What is in an archive: its name, "file", "folder" or what else, its bytes when unpacked, and how to read it."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archives: Sequence[Path], folder: Path, inside: str = "") -> None:
    """Unpack zip and tar archives (gz, bz2, xz) together into a folder that appears whole or not at all.

    What macOS adds of its own (``__MACOSX``, ``._name``, ``.DS_Store``) is left out.

    Args:
        folder: that does not exist yet.
        inside: the folder in the archives that becomes ``folder``, all beside it being left out; "" for everything.

    Raises:
        DamagedArchiveError: an archive is of another kind, damaged or encrypted.
        InputError: the folder exists; a path that leads out of the folder, a link or a device in an archive; more than
            2 million files, or more than 100 MiB and more than 50 times the archive's own size; more than fits on the
            disk; a file twice; nothing to unpack. In no case is a file left behind.
    """
    with new_folder(folder) as unfinished:
        free = shutil.disk_usage(unfinished).free
        for archive in archives:
            with _members(archive, inside) as members:
                needed = sum(member.size for member in members.values())
                if needed > free:
                    raise InputError(
                        f"{printable(archive.name)} holds {needed / 1e6:,.0f} MB and the disk of {printable(folder)} "
                        f"has {free / 1e6:,.0f} MB free. Make room, or choose another folder."
                    )
                free -= needed
                for place, member in progress(members.items(), desc=f"unpacking {archive.name}", unit="file"):
                    _write(member, unfinished / place, archive)


def check_archive(archive: Path) -> None:
    """Refuse a file that is not there."""
    if not archive.is_file():
        raise InputError(f"{printable(archive)}: no such file. Check the path.")


def _write(member: _Member, target: Path, archive: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # from another archive, or the disk takes two names for one
        raise InputError(f"{printable(archive)} has {printable(member.name)}, which is there already. Unpack by hand.")
    source = member.open()
    assert source is not None, "regular files alone have passed"
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file)


@contextmanager
def _members(archive: Path, inside: str) -> Iterator[dict[PurePosixPath, _Member]]:
    """The files of an archive by their place, after every name and size in it has been found harmless."""
    check_archive(archive)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                yield _checked(archive, inside, _in_zip(file))
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                yield _checked(archive, inside, _in_tar(tar))
        else:
            raise DamagedArchiveError(
                f"{printable(archive)} is neither a zip nor a tar archive. Unpack it by hand, or get another copy."
            )
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # without one: a decompressor of a damaged stream
            raise
        raise DamagedArchiveError(
            f"{printable(archive)} is damaged, cut short or encrypted ({error}). Get another copy."
        ) from error


def _in_zip(file: zipfile.ZipFile) -> Iterator[_Member]:
    for info in file.infolist():
        link = stat.S_ISLNK(info.external_attr >> 16)
        kind = "a link" if link else "folder" if info.is_dir() else "file"
        yield _Member(info.filename, kind, info.file_size, partial(file.open, info))


def _in_tar(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        link = info.issym() or info.islnk()
        kind = "file" if info.isfile() else "folder" if info.isdir() else "a link" if link else "a device"
        yield _Member(info.name, kind, info.size, partial(tar.extractfile, info))
    # The checksum of a compressed archive is at its end, to which tarfile does not read.
    assert tar.fileobj is not None
    for _ in range(FREE_OF_LIMIT // BLOCK):
        if not tar.fileobj.read(BLOCK):
            break


def _checked(archive: Path, inside: str, members: Iterable[_Member]) -> dict[PurePosixPath, _Member]:
    size = archive.stat().st_size
    most = max(FREE_OF_LIMIT, MOST_TIMES * size)
    places: dict[PurePosixPath, _Member] = {}
    tops: set[str] = set()
    total = 0
    for count, member in enumerate(members):
        shown = printable(repr(member.name))
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", member.name):
            raise InputError(
                f"{printable(archive)} has {shown} in it, which leads out of the folder. Do not trust this archive; "
                "nothing of it was unpacked."
            )
        if member.kind not in ("file", "folder"):
            raise InputError(
                f"{printable(archive)} has {member.kind} in it, {shown}; wanted: files and folders alone. Nothing of "
                "it was unpacked."
            )
        total += member.size
        if total > most or count == MOST_FILES:
            raise InputError(
                f"{printable(archive)}, of {size / 1e6:,.1f} MB, would unpack to more than {most / 1e6:,.0f} MB or to "
                f"more than {MOST_FILES:,} files. Nothing of it was unpacked; if you trust it, unpack it by hand."
            )
        if member.kind == "file" and path.parts and not _of_macos(path):
            tops.add(path.parts[0])
            if path.is_relative_to(inside):
                place = path.relative_to(inside)
                if place in places:
                    raise InputError(f"{printable(archive)} has {shown} twice. Unpack it by hand.")
                places[place] = member
    if not places:
        what = f"no file in a folder {inside!r}" if inside else "no file"
        raise InputError(f"{printable(archive)} has {what} in it; found: {few(sorted(tops))}. Is it the right archive?")
    return places


def _of_macos(path: PurePosixPath) -> bool:
    return path.parts[0] == "__MACOSX" or path.name.startswith("._") or path.name == ".DS_Store"
