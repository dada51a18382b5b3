"""A folder that appears when all is written, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor
from torchvision.io import encode_png

from kdlab.data.images import printable
from kdlab.errors import InputError
from kdlab.files import why


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty hidden folder beside ``folder``, and gives it that name when the block has ended well.

    What a kill has left behind is removed by the next one of the same name.

    Raises:
        InputError: ``folder`` exists; it cannot be written, or the disk is full, in the block, too.
    """
    if folder.exists():
        raise InputError(f"{printable(folder)} exists already. Delete it, or name another folder.")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, folder)
    except OSError as error:
        raise InputError(
            f"{printable(folder)} could not be written: {why(error)}. Nothing is left of it; make room or choose "
            "another place, then run again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_png(image: UInt8[Tensor, "c h w"], path: Path) -> None:
    """Write an image of one or three channels; torchvision's own function is silent where the disk is full.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_bytes(encode_png(image).numpy().tobytes())
