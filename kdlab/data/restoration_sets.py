"""The public restoration sets where a person has put them: found, counted, listed for training without their traps."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from kdlab.data.archives import DamagedArchiveError, check_archive, unpack
from kdlab.data.catalogue import Part, RestorationSet
from kdlab.data.download import download
from kdlab.data.images import printable
from kdlab.data.manifest import MANIFEST, hashes, record
from kdlab.data.pair_folders import LAYOUTS, find_pairs
from kdlab.data.pair_folders import SPLITS as SPLIT_NAMES
from kdlab.data.pairs import Pair
from kdlab.data.two_halves import split_halves
from kdlab.errors import InputError
from kdlab.files import write_whole

LISTS = "meta"
SPLITS = {"train": "train", "val": "valid", "test": "test"}  # and what they are called among the lists


class Found(NamedTuple):
    """The pairs of each split, what was left out and why, and where the numbers are others than the known ones.

    ``hashes`` has those of the files, the clean ones among them.
    """

    pairs: dict[str, list[Pair]]
    left_out: list[str]
    odd: list[str]
    hashes: dict[Path, str]


def folder_of(wanted: RestorationSet, data: Path) -> Path:
    return data / (wanted.folder or wanted.name)


def instructions(wanted: RestorationSet, data: Path) -> str:
    """What to download, from where, and where to put it."""
    root = folder_of(wanted, data)
    lines = [f"{wanted.title} is behind a page, a form or a drive: {wanted.page}", "Unpack it so that there is"]
    for split, part in wanted.parts.items():
        known = " or ".join(f"{count:,} ({whose})" for count, whose in part.counts) or "a number that is not known here"
        optional = " (may be left out)" if split == "val" else ""
        lines.append(f"  {printable(root / part.folder)}{os.sep}  pairs for {split}{optional}: {known}")
    if wanted.pair is None:
        lines.append("with the files as they are, two images side by side in each")
    else:
        degraded, clean = wanted.pair
        lines.append(
            f"with files such as {degraded}, whose clean image is {clean}, or in another layout that kdlab reads"
        )
    first = next(iter(wanted.parts))
    example = f"--from {first}=ARCHIVE" if len(wanted.parts) > 1 else "--from ARCHIVE"
    lines.append(f"or let it be unpacked: {example} (files, or the address of one), and run this again.")
    return "\n".join([*lines, wanted.note] if wanted.note else lines)


def take_in(wanted: RestorationSet, data: Path, sources: Mapping[str, Sequence[str]]) -> None:
    """Unpack archives, files or addresses, as the splits of the set that they are given for.

    An address is downloaded to ``data/archives/NAME/SPLIT``. No hash of these files is published, so the first download
    is trusted: its hash is recorded in the manifest there, and every later one has to have it.

    Raises:
        InputError: no such split or file, and nothing is unpacked; what :func:`download` and :func:`unpack` refuse.
    """
    for split, some in sources.items():
        if split not in wanted.parts:
            raise InputError(f"{wanted.name} has no split {split!r}; wanted: {' or '.join(wanted.parts)}.")
        for source in some:
            if "://" not in source:
                check_archive(Path(source).expanduser())
    for split, some in sources.items():
        _take_in(wanted, data, split, some)


def _take_in(wanted: RestorationSet, data: Path, split: str, sources: Sequence[str]) -> None:
    store = data / "archives" / wanted.name / split
    known = hashes(store) if (store / MANIFEST).exists() else {}
    files, fetched = [], []
    for source in sources:
        if "://" not in source:
            files.append(Path(source).expanduser())
            continue
        name = source.split("?")[0].rstrip("/").rsplit("/", 1)[1]
        download(source, store / name, f"sha256:{known[name]}" if name in known else None)
        files.append(store / name)
        fetched.append(store / name)
    try:
        unpack(files, folder_of(wanted, data) / wanted.parts[split].folder)
    except DamagedArchiveError:
        for file in fetched:  # or it would be taken for good the next time
            file.unlink()
        raise
    if fetched:
        record(store)
    for file in fetched:
        file.unlink()


def find(wanted: RestorationSet, data: Path) -> Found:
    """The pairs of a set that is on disk, without those that a comparison must not have.

    Where there is no "val", every tenth clean image of "train" makes it, with all that was made of it. Pairs of "train"
    are left out whose clean image is known to be a scene of the test, or has the same bytes as one of the test or of
    "val", and pairs of "val" whose clean image has those of one of the test. The hashes of all files but the lists are
    recorded in a manifest in the set's folder.

    Raises:
        InputError: a split is not there, or not in a layout that kdlab reads; a degraded image has no clean one.
    """
    root = folder_of(wanted, data)
    pairs: dict[str, list[Pair]] = {}
    odd: list[str] = []
    for split, part in wanted.parts.items():
        place = root / part.folder
        if split == "val" and not place.is_dir():
            continue
        if not place.is_dir():
            raise InputError(f"{printable(place)} is not there.\n{instructions(wanted, data)}")
        if wanted.halves:
            place = root / "halves" / part.folder
            if not place.is_dir():
                split_halves(root / part.folder, place)
        found = _pairs_below(place, wanted, data)
        pairs[split] = _one_each(found) if wanted.one_each else found
        if part.counts and len(pairs[split]) not in [count for count, _ in part.counts]:
            odd.append(_odd(split, part, len(pairs[split])))
    known = {root / name: value for name, value in record(root, skip=(LISTS,)).items()}
    pairs, by_name = _without_named(pairs, wanted)
    pairs, by_bytes = _apart(pairs, known)
    if "train" in pairs and "val" not in pairs:
        pairs["train"], pairs["val"] = _tenth(pairs["train"], known)
    return Found(pairs, by_name + by_bytes, odd, known)


def write_lists(root: Path, found: Found) -> None:
    """Write the pairs of each weather to ``root/meta/SPLIT/WEATHER.json``, as :func:`kdlab.data.load_pairs` reads them.

    All other lists there are deleted: they would be read, too.

    Raises:
        InputError: a list cannot be written, or another one not deleted.
    """
    written = []
    for split, pairs in found.pairs.items():
        for weather in sorted({pair.weather for pair in pairs}):
            path = root / LISTS / SPLITS[split] / f"{weather}.json"
            rows = [
                [Path(os.path.relpath(str(image), root)).as_posix() for image in (pair.clean, pair.degraded)]
                for pair in pairs
                if pair.weather == weather
            ]
            write_whole(path, json.dumps(rows, indent=0).encode())
            written.append(path)
    _delete_others(root / LISTS, written)


def _delete_others(lists: Path, written: Sequence[Path]) -> None:
    try:
        for folder in (lists / name for names in SPLIT_NAMES.values() for name in names):
            for path in set(folder.glob("*.json")) - set(written):
                path.unlink()
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()  # or it would be a split without weathers
    except OSError as error:
        raise InputError(
            f"the old lists in {printable(lists)} cannot be deleted: {error.strerror}. Delete them by hand."
        ) from error


def joined(found: Iterable[Found]) -> Found:
    """Several sets as one, without what the validation or the test of one shares with another: that is ``left_out``."""
    pairs: dict[str, list[Pair]] = {}
    odd: list[str] = []
    known: dict[Path, str] = {}
    for one in found:
        for split, more in one.pairs.items():
            pairs.setdefault(split, []).extend(more)
        odd += one.odd
        known |= one.hashes
    pairs, left_out = _apart(pairs, known)
    return Found(pairs, left_out, odd, known)


def drawn(found: Found, number: int) -> Found:
    """At most so many training pairs of each weather, always the same ones, and a tenth of it to validate with.

    Every epoch measures all validation images whole: all of a large set would take longer than the training on a part
    of it. The test stays as it is.
    """
    most = {"train": number, "val": max(1, number // 10)}
    return found._replace(
        pairs={split: _some(pairs, most[split]) if split in most else pairs for split, pairs in found.pairs.items()}
    )


def _some(pairs: Sequence[Pair], number: int) -> list[Pair]:
    by_weather: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_weather.setdefault(pair.weather, []).append(pair)
    return [one for its in by_weather.values() for one in Random(0).sample(its, min(number, len(its)))]


# --- what is on disk --------------------------------------------------------------------------------------------------


def _pairs_below(place: Path, wanted: RestorationSet, data: Path) -> list[Pair]:
    """The pairs in a folder, or, where it is none of pairs itself, in the folders in it."""
    folders = [place, *sorted(path for path in place.rglob("*") if path.is_dir() and not path.name.startswith("."))]
    pairs: list[Pair] = []
    done: list[Path] = []
    for folder in folders:
        if not any(folder.is_relative_to(one) for one in done) and _holds_pairs(folder):
            pairs += find_pairs(folder, wanted.weather)
            done.append(folder)
    if not pairs:
        raise InputError(f"there are no pairs in {printable(place)}.\n{instructions(wanted, data)}")
    return pairs


def _holds_pairs(folder: Path) -> bool:
    inside = {path.name.lower(): path.is_dir() for path in folder.iterdir()}
    for layout in LAYOUTS:
        if layout.degraded and inside.get(layout.degraded.lower()) and inside.get(layout.clean.lower()):
            return True
        stems = (name.rsplit(".", 1)[0] for name, is_folder in inside.items() if not is_folder)
        if not layout.degraded and any(layout.clean_stem(stem) != stem for stem in stems):
            return True
    return False


def _odd(split: str, part: Part, count: int) -> str:
    known = " or ".join(f"{number:,} ({whose})" for number, whose in part.counts)
    return f"{split} has {count:,} pairs; known: {known}. Something is missing, or it is another copy"


# --- the traps --------------------------------------------------------------------------------------------------------


def _without_named(pairs: Mapping[str, list[Pair]], wanted: RestorationSet) -> tuple[dict[str, list[Pair]], list[str]]:
    """The pairs, without those of "train" whose scene is one of the test by its name; what was left out."""
    train = pairs.get("train", [])
    kept = [pair for pair in train if _clean(pair).stem not in wanted.shared]
    if len(kept) == len(train):
        return dict(pairs), []
    left_out = f"left out of train, being scenes of the test by their names: {len(train) - len(kept):,}"
    return {**pairs, "train": kept}, [left_out]


def _apart(pairs: Mapping[str, list[Pair]], known: Mapping[Path, str]) -> tuple[dict[str, list[Pair]], list[str]]:
    """The pairs, without those of "train" with a clean image of "val" or "test", and of "val" with one of "test"."""
    kept: dict[str, list[Pair]] = {}
    left_out = []
    judged: set[str] = set()
    for split in ("test", "val", "train"):
        kept[split] = [pair for pair in pairs.get(split, []) if known[_clean(pair)] not in judged]
        if shared := len(pairs.get(split, [])) - len(kept[split]):
            whose = " or ".join(other for other in ("test", "val") if other in pairs and other != split)
            left_out.append(f"left out of {split}, having a clean image of the {whose}: {shared:,}")
        judged |= {known[_clean(pair)] for pair in kept[split]}
    return {split: kept[split] for split in pairs}, left_out


def _tenth(train: list[Pair], known: Mapping[Path, str]) -> tuple[list[Pair], list[Pair]]:
    """The pairs of every tenth clean image apart, so that no scene is on both sides, nor a copy of it."""
    scenes = list(dict.fromkeys(known[path] for path in sorted({_clean(pair) for pair in train})))
    held_out = set(scenes[9::10] or scenes[-1:])
    return (
        [pair for pair in train if known[_clean(pair)] not in held_out],
        [pair for pair in train if known[_clean(pair)] in held_out],
    )


def _one_each(pairs: list[Pair]) -> list[Pair]:
    first: dict[Path, Pair] = {}
    for pair in pairs:
        first.setdefault(_clean(pair), pair)
    return list(first.values())


def _clean(pair: Pair) -> Path:
    assert isinstance(pair.clean, Path)
    return pair.clean
