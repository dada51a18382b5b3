"""Public sets by their names: the folder that the scripts under data_scripts have put them, or their lists, into."""

from pathlib import Path

from kdlab.data.catalogue import DirectSet, RestorationSet
from kdlab.data.direct_sets import class_folders
from kdlab.data.images import printable
from kdlab.data.restoration_sets import LISTS, folder_of
from kdlab.errors import InputError

DATA = Path("data")  # where the scripts put everything, unless they are told another place


def locate_boxes(source: Path) -> Path:
    """The folder of Pascal VOC's boxes where the source is "voc"; any other path, and one that is there, as it is.

    Raises:
        InputError: the boxes have not been written yet.
    """
    folder = DATA / "voc-boxes"
    if source.exists() or str(source) != "voc":
        return source
    if not folder.is_dir():
        raise InputError(
            f"Pascal VOC's boxes are not in {printable(folder)}. Get the set and write them with: python "
            f"data_scripts/get_segmentation.py voc, then python data_scripts/make_boxes.py {printable(folder)}"
        )
    return folder


def locate(source: str | Path, sets: tuple[DirectSet, ...] | tuple[RestorationSet, ...]) -> Path:
    """The folder of a set that is named, such as ``data/imagenette2-160`` of "imagenette-160"; any other path as it is.

    A folder of that name in the working directory goes before the set. A restoration set's is that of its lists.

    Raises:
        InputError: the set has not been got yet, or not been listed.
    """
    path = Path(source)
    known = {one.name: one for one in sets}
    if path.exists() or str(source) not in known:
        return path
    wanted = known[str(source)]
    if isinstance(wanted, DirectSet):
        script, folder = "get_classification", class_folders(wanted, DATA)
    else:
        script, listed = "get_restoration", DATA / wanted.name
        folder = listed if (listed / LISTS).is_dir() else folder_of(wanted, DATA)
    command = f"python data_scripts/{script}.py {wanted.name}"
    if not folder.is_dir():
        raise InputError(f"{wanted.title} is not in {printable(folder)}. Get it with: {command}")
    if isinstance(wanted, RestorationSet) and not (folder / LISTS).is_dir():
        raise InputError(
            f"{wanted.title} is in {printable(folder)}, but its pairs are not listed. List them: {command}"
        )
    return folder
