"""The built-in pairs of rain, haze and snow as files, each weather in the layout of a public set."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from kdlab.data.manifest import record
from kdlab.data.new_folder import new_folder, write_png
from kdlab.data.pair_folders import LAYOUTS, Layout
from kdlab.data.pairs import Pair, PairedImages
from kdlab.data.weather_photos import VARIANTS, load_weather
from kdlab.progress import progress

SETS = {"haze": "RESIDE", "rain": "Rain1400", "snow": "Snow100K"}


def write_weather(folder: Path, variants: int = VARIANTS["train"], seed: int = 0) -> None:
    """Write what :func:`kdlab.data.load_weather` draws to ``folder/SPLIT/WEATHER/``, and a manifest of hashes.

    Haze lies as RESIDE has it (``hazy/0001_1.png`` with ``clear/0001.png``), rain as Rain1400 (``rainy_image/``,
    ``ground_truth/``) and snow as Snow100K (``synthetic/`` and ``gt/``, the same name). :func:`kdlab.data.load_pairs`
    reads them back.

    Args:
        folder: that does not exist yet.
        variants: of each training photograph in each weather.
        seed: another one draws another weather; the same one, the same files.

    Raises:
        InputError: a setting out of range; the folder exists or cannot be written. Nothing is left of it then.
    """
    layouts = {weather: next(one for one in LAYOUTS if one.sets == name) for weather, name in SETS.items()}
    with new_folder(folder) as unfinished:
        splits = load_weather(variants=variants, seed=seed)
        for split, part in {"train": splits.train, "val": splits.val, "test": splits.test}.items():
            assert isinstance(part, PairedImages)
            for weather, layout in layouts.items():
                _write_pairs(part.only([weather]).pairs, unfinished / split / weather, layout)
        record(unfinished)


def _write_pairs(pairs: Sequence[Pair], folder: Path, layout: Layout) -> None:
    degraded_folder, clean_folder = folder / layout.degraded, folder / layout.clean
    for place in (degraded_folder, clean_folder):
        place.mkdir(parents=True)
    seen: dict[bytes, list[int]] = {}  # the clean images, each with its number and how many were made of it
    for pair in progress(pairs, desc=f"writing {folder.parent.name}/{folder.name}", unit="pair"):
        assert isinstance(pair.degraded, Tensor)
        assert isinstance(pair.clean, Tensor)
        known = seen.setdefault(pair.clean.numpy().tobytes(), [len(seen) + 1, 0])
        known[1] += 1
        stem = "{:04}_{}".format(*known)
        write_png(pair.degraded, degraded_folder / f"{stem}.png")
        write_png(pair.clean, clean_folder / f"{layout.clean_stem(stem)}.png")
