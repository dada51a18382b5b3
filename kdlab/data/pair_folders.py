"""Degraded images with their clean ones on disk: the layouts of the public sets, and lists of pairs in JSON."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image

from kdlab.data.images import Skipped, attempt, few, files_under, folders_in, printable
from kdlab.data.pairs import Pair, PairedImages, fit
from kdlab.data.splits import ImageSplits, known_by
from kdlab.errors import InputError
from kdlab.progress import progress

SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}  # and the names that each may have
TURNS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # where Pillow looks for a camera's note
LEAST = {"val": 11, "test": 11}  # pixels of a side, which the window of SSIM wants where images are judged


Size = tuple[int, int]  # width and height


class Layout(NamedTuple):
    """How public sets keep their pairs: in which two folders, or in one (""), and what makes a name the clean one's."""

    sets: str
    degraded: str
    clean: str
    example: str
    pattern: str = ""
    replacement: str = ""
    margin: bool = False

    def clean_stem(self, stem: str) -> str:
        """The name of the clean image; the same name where the degraded one has nothing to take off."""
        match = re.fullmatch(self.pattern, stem)
        return match.expand(self.replacement) if match else stem

    def __str__(self) -> str:
        folders = [f"{name}/" if name else "" for name in (self.degraded, self.clean)]
        return f"{folders[0]}{self.example} with {folders[1]}{self.clean_stem(self.example)} ({self.sets})"


LAYOUTS = (
    Layout("AllWeather", "input", "gt", "17"),
    Layout("Outdoor-Rain", "input", "gt", "im_0001_s80_a04", r"(im_\d+)_.+", r"\1"),
    Layout("RainDrop", "input", "gt", "17_rain", r"(.+)_rain", r"\1_clean"),
    Layout("RainDrop", "data", "gt", "17_rain", r"(.+)_rain", r"\1_clean"),
    Layout("RainDrop", "", "", "17_rain", r"(.+)_rain", r"\1_clean"),
    Layout("Rain13K", "input", "target", "17"),
    Layout("Rain1400", "rainy_image", "ground_truth", "901_1", r"(.+)_\d+", r"\1"),
    Layout("Snow100K", "synthetic", "gt", "17"),
    Layout("CSD, SRRS", "Snow", "Gt", "17"),
    Layout("RESIDE", "hazy", "clear", "1400_1", r"([^_]+)_.+", r"\1", margin=True),
    Layout("O-HAZE, I-HAZE", "hazy", "GT", "01_outdoor_hazy", r"(.+)_hazy", r"\1_GT"),
    Layout("SOTS", "hazy", "gt", "1400_1", r"([^_]+)_.+", r"\1", margin=True),
    Layout("NH-HAZE", "", "", "01_hazy", r"(.+)_hazy", r"\1_GT"),
)

WANTED = """Wanted
  {root}/
    train/  haze/  hazy/ ...   clear/ ...     for each weather a folder, and in it those with its pairs
            rain/  input/ ...  target/ ...
    val/    haze/ ...  rain/ ...
    test/                                     may be left out
or lists of [clean, degraded] paths
  {root}/
    meta/   train/ haze.json rain.json    valid/ haze.json rain.json"""


class _Match(NamedTuple):
    """A degraded image, what its clean one has to be called, the files that are called so, and what the pair gets."""

    degraded: Path
    wanted: Path
    clean: tuple[Path, ...]
    name: str
    margin: bool = False


class _Source(NamedTuple):
    """The folder or list of one weather in one split: its matches, and what in it cannot be in one."""

    place: Path
    matches: list[_Match]
    skipped: list[Skipped]


def load_pairs(root: str | Path, crop: int = 224, *, only_judged: bool = False) -> ImageSplits:
    """Pairs on disk, by weather, as training, validation and test splits of :class:`PairedImages`.

    Either ``root/train/WEATHER/`` and ``root/val/WEATHER/``, perhaps ``root/test/WEATHER/``, each with its pairs in one
    of the :data:`LAYOUTS`, whatever the case of the folders' names; a degraded and a clean image may differ in format,
    several degraded images may have one clean image, and they may be in folders where the clean ones are in none. Or
    ``root/meta/train/WEATHER.json`` and ``root/meta/valid/WEATHER.json``, perhaps ``root/meta/test/WEATHER.json``,
    lists of ``[clean, degraded]`` with paths from ``root``. The classes are the weathers, in alphabetical order.

    Only the head of each file is read here: one that is cut short is found when it is used.

    Args:
        crop: height and width of the training crops, at least 16; the other splits have whole images.
        only_judged: whether only validation and test are read, one of which will do, and take the place of the others.

    Raises:
        InputError: another layout; pairs without a weather; a weather that is not in every split, or has no pairs; a
            degraded image without its clean one, or of another size; one with a side of less than 11 pixels in a split
            that is judged; a list that is none, or names a file that is not there. Files that are no images are no
            error: they are in ``skipped``.
    """
    if crop < 16:
        raise InputError(f"crop is {crop}; wanted: at least 16 pixels.")
    root = Path(root).expanduser().resolve()
    listed = _has_lists(root)
    find = partial(_in_list, root) if listed else _in_folder
    sources = {
        split: {weather: find(place) for weather, place in places.items()}
        for split, places in _places(root, listed, only_judged).items()
    }
    looks = _looks([source for weathers in sources.values() for source in weathers.values()])
    pairs: dict[str, list[Pair]] = {
        split: [
            pair for weather, source in weathers.items() for pair in _pairs(source, weather, looks, LEAST.get(split, 1))
        ]
        for split, weathers in sources.items()
    }
    weathers = tuple(next(iter(sources.values())))
    judged = {split: PairedImages(found, weathers) for split, found in pairs.items() if split != "train"}
    val = judged["val" if "val" in judged else "test"]
    return ImageSplits(
        train=val if only_judged else PairedImages(pairs["train"], weathers, crop),
        val=val,
        test=judged.get("test", val),
        classes=weathers,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        size=crop,
        name=root.name,
        deterministic=False,
        skipped=tuple(look for _, look in sorted(looks.items()) if isinstance(look, Skipped)),
        test_is_val="test" not in judged,
        val_is_test="val" not in judged,
        files={split: known_by(root, _files(pairs[split])) for split in ("train", "val") if split in pairs},
    )


def list_weathers(root: str | Path) -> tuple[str, ...]:
    """The classes that :func:`load_pairs` will give, from the names of the folders or lists alone.

    Raises:
        InputError: another layout; pairs without a weather; a weather that is not in every split.
    """
    root = Path(root).expanduser().resolve()
    return tuple(next(iter(_places(root, _has_lists(root), only_judged=False).values())))


def _has_lists(root: Path) -> bool:
    return any((root / "meta" / name).is_dir() for name in chain(*SPLITS.values()))


def _files(pairs: Sequence[Pair]) -> list[Path]:
    return [file for pair in pairs for file in (pair.degraded, pair.clean) if isinstance(file, Path)]


def find_pairs(folder: Path, weather: str) -> list[Pair]:
    """The pairs of one weather's folder, in one of the :data:`LAYOUTS`, in the order of the degraded files' names.

    Raises:
        InputError: another layout, no pairs, or a degraded image without its clean one, or of another size.
    """
    source = _in_folder(folder)
    return _pairs(source, weather, _looks([source]))


# --- the weathers of the splits --------------------------------------------------------------------------------------


def _places(root: Path, listed: bool, only_judged: bool) -> dict[str, dict[str, Path]]:
    """The folder or list of every weather in each split that there is, the same weathers in all of them."""
    if not root.is_dir():
        what = "a file, not a folder" if root.exists() else "no such folder"
        raise InputError(f"{printable(root)}: {what}. Give the folder that holds train/ and val/.")
    parent = root / "meta" if listed else root
    folders = {
        split: folder
        for split, names in SPLITS.items()
        if (folder := next(filter(Path.is_dir, map(parent.joinpath, names)), None)) is not None
    }
    if only_judged:
        folders.pop("train", None)
    wanted = ("val", "test") if only_judged else ("train", "val")
    missing = [f"{split}/" for split in wanted if split not in folders]
    if len(missing) > (1 if only_judged else 0):
        raise InputError(
            f"{printable(parent)} has no {' and no '.join(missing)} in it; folders found: "
            f"{few([f'{name}/' for name in _folders_in(parent)])}.\n{WANTED.format(root=printable(root.name))}"
        )
    for folder in () if listed else folders.values():
        for _, *two in _in_two_folders(folder):
            names = " and ".join(f"{printable(path.name)}/" for path in two)
            raise InputError(
                f"{printable(folder)} holds pairs without a weather's folder: {names}. Move these into "
                f"{folder.name}/haze/, or what else their weather is called."
            )
    within = _lists_in if listed else _folders_in
    places = {split: within(folder) for split, folder in folders.items()}
    uneven = []
    for weather in sorted(set().union(*places.values())):
        lacking = [f"{split}/" for split, there in places.items() if weather not in there]
        if lacking:
            having = [f"{split}/" for split, there in places.items() if weather in there]
            uneven.append(f"{printable(weather)!r} is in {' and '.join(having)} but not in {' and '.join(lacking)}")
    if uneven:
        raise InputError(
            f"the splits of {printable(parent)} have different weathers: {few(uneven)}. "
            "Every split needs the same: add or rename those that differ."
        )
    first = next(iter(places))
    if not places[first]:
        raise InputError(f"no weather in {folders[first]}.\n{WANTED.format(root=printable(root.name))}")
    return places


def _folders_in(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in folders_in(folder)}


def _lists_in(folder: Path) -> dict[str, Path]:
    return dict(sorted((path.stem, path) for path in folder.glob("*.json") if not path.name.startswith(".")))


# --- the pairs of one weather in one split ---------------------------------------------------------------------------


def _in_list(root: Path, file: Path) -> _Source:
    """The pairs of a list, whose paths are from the root."""
    try:
        entries = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{printable(file)} cannot be read as JSON ({error}). Wanted: a list of pairs.") from error
    odd = [entries] if not isinstance(entries, list) else [entry for entry in entries if not _two_paths(entry)]
    if odd or not entries:
        shown = json.dumps(odd[0])[:80] if odd else "an empty list"
        wanted = '[["clean.png", "degraded.png"], ...]'
        raise InputError(f"{printable(file)} has {shown}; wanted: a list of pairs, {wanted}.")
    missing = sorted({path for entry in entries for path in entry if not os.path.exists(root / path)})
    if missing:
        raise InputError(
            f"{printable(file)} names {len(missing)} files that are not there: {few(missing)}. "
            f"Paths are from {printable(root)}: put the files there, or take the pairs out of the list."
        )
    matches = [
        _Match(
            root / degraded, root / clean, (root / clean,), _name(Path(degraded)),
            _has_margin(Path(degraded), Path(clean)),
        )
        for clean, degraded in entries
    ]  # fmt: skip
    return _Source(file, matches, [])


def _has_margin(degraded: Path, clean: Path) -> bool:
    """A list says nothing of margins, but the folders and names in it may be those of a set that has them."""
    folders, clean_folders = ([name.lower() for name in path.parts[:-1]] for path in (degraded, clean))
    return any(
        layout.margin
        and layout.degraded.lower() in folders
        and layout.clean.lower() in clean_folders
        and layout.clean_stem(degraded.stem) == clean.stem
        for layout in LAYOUTS
    )


def _two_paths(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(path, str) for path in entry)


def _in_folder(folder: Path) -> _Source:
    """The pairs of a weather's folder, by the layout that finds the clean images of most degraded ones."""
    one = [layout for layout in LAYOUTS if not layout.degraded]
    found = [_by_layout(degraded, clean, layout) for layout, degraded, clean in _in_two_folders(folder)]
    found = found or [source for layout in one if (source := _by_layout(folder, folder, layout)).matches]
    if not found:
        known = "\n".join(f"  {layout}" for layout in LAYOUTS)
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
        raise InputError(
            f"no pairs of a weather in {printable(folder)}; folders found: {few(list(_folders_in(folder)))}; files: "
            f"{few(files)}. Wanted: images that are kept and called as in one of these sets, in any format.\n{known}"
        )
    return max(found, key=_fit)


def _in_two_folders(folder: Path) -> list[tuple[Layout, Path, Path]]:
    """The layouts whose folders, of degraded and of clean images, are both in it, with these."""
    inside = {name.lower(): path for name, path in _folders_in(folder).items()}
    both = [(layout, inside.get(layout.degraded.lower()), inside.get(layout.clean.lower())) for layout in LAYOUTS]
    return [(layout, degraded, clean) for layout, degraded, clean in both if degraded and clean]


def _fit(source: _Source) -> tuple[int, int]:
    """How many have a clean image, and of how many the name is one of the layout's."""
    changed = [match.wanted.name != match.degraded.stem for match in source.matches]
    return sum(bool(match.clean) for match in source.matches), sum(changed)


def _by_layout(degraded: Path, clean: Path, layout: Layout) -> _Source:
    """What a layout makes of two folders, or of one that is given twice."""
    under = {folder: files_under(folder) for folder in (degraded, clean)}
    called: dict[Path, list[Path]] = {}
    for path in under[clean][0]:
        called.setdefault(path.parent / path.stem, []).append(path)
    flat = degraded != clean and all(path.parent == clean for path in under[clean][0])  # for whatever parts, as in OTS
    matches = []
    for path in under[degraded][0]:
        if degraded != clean or re.fullmatch(layout.pattern, path.stem):
            inner = path.relative_to(degraded)
            wanted = (clean if flat else clean / inner.parent) / layout.clean_stem(path.stem)
            matches.append(_Match(path, wanted, tuple(called.get(wanted, ())), _name(inner), layout.margin))
    skipped = [one for _, unreadable in under.values() for one in unreadable]
    if degraded == clean:
        used = {path for match in matches for path in (match.degraded, *match.clean)}
        skipped += [Skipped(path, "by its name in no pair") for path in under[degraded][0] if path not in used]
    return _Source(degraded, matches, skipped)


def _name(path: Path) -> str:
    return printable((path.parent / path.stem).as_posix())


# --- the one look at every file --------------------------------------------------------------------------------------


def _looks(sources: Sequence[_Source]) -> dict[Path, Size | Skipped]:
    """The size of every file, or why it is no image; and those that the sources have skipped."""
    matches = [match for source in sources for match in source.matches]
    files = dict.fromkeys(path for match in matches for path in (match.degraded, *match.clean))
    looks = {path: attempt(path, _size) for path in progress(files, desc="listing pairs", unit="file")}
    return looks | {one.path: one for source in sources for one in source.skipped}


def _size(image: Image.Image) -> Size:
    """Width and height as they will be seen, from the head of the file alone."""
    told = not TURNS.isdisjoint(image.info) and image.format != "TIFF"  # whose size is told as it is seen
    # Not image.getexif(), which decodes a PNG.
    turned = told and Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) >= 5
    return (image.height, image.width) if turned else (image.width, image.height)


def _pairs(source: _Source, weather: str, looks: Mapping[Path, Size | Skipped], least: int = 1) -> list[Pair]:
    """The pairs whose degraded file is an image; each must have one clean image, which fits, and no side too short."""
    pairs, alone, uneven, small = [], [], [], []
    for match in source.matches:
        size = looks[match.degraded]
        if isinstance(size, Skipped):
            continue
        clean = {path: look for path in match.clean if not isinstance(look := looks[path], Skipped)}
        if len(clean) == 1:
            ((path, clean_size),) = clean.items()
            pairs.append(Pair(match.degraded, path, weather, match.name, match.margin))
            named = f"{printable(match.degraded)} is {_times(size)}"
            if not fit(size, clean_size, match.margin):
                uneven.append(f"{named} and {printable(path)} is {_times(clean_size)}")
            if min(size) < least:
                small.append(named)
        elif clean:
            first, second = list(clean)[:2]
            alone.append(f"{printable(match.name)} (two could be meant: {first.name} and {second.name})")
        else:
            reasons = "".join(f"; {looks[path]}" for path in match.clean)
            alone.append(f"{printable(match.name)} (wanted: {printable(match.wanted)}{reasons})")
    if alone:
        raise InputError(
            f"{len(alone)} of the degraded images of {printable(source.place)} have no clean image of their own: "
            f"{few(alone)}. Put it there, or take the degraded image out."
        )
    if uneven:
        raise InputError(
            f"{len(uneven)} of the pairs of {printable(source.place)} have two sizes: {few(uneven)}. "
            "Wanted: one size; take another copy, or take the pair out."
        )
    if small:
        raise InputError(
            f"{len(small)} of the images of {printable(source.place)} are too small to be judged: {few(small)}. "
            f"Wanted for SSIM: at least {least}x{least} pixels; take the pair out."
        )
    if not pairs:
        reasons = "".join(f"; {looks[match.degraded]}" for match in source.matches[:1])
        raise InputError(
            f"{weather!r} has no usable image in {printable(source.place)} (files skipped: {len(source.matches)}"
            f"{reasons}). Put pairs there, or remove the weather from every split."
        )
    return pairs


def _times(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
