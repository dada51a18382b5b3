"""Tensors and what belongs to them in one file, written whole or not at all."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdlab.errors import InputError


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a safetensors file whose header carries ``meta`` as JSON.

    The bytes go to a neighbouring file first and take the name last, so that a kill, a crash or a full disk leaves
    the previous file as it was. One file instead of two cannot come apart.

    Raises:
        InputError: the disk is full, or the place cannot be written.
    """
    contiguous: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in seen:  # a module in two places; the format wants each tensor by itself
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        contiguous[name] = own
    write_whole(path, save(contiguous, metadata={"kdlab": json.dumps(meta)}))


def load_tensors(
    path: Path, remedy: str = "Take another copy, or delete it and make it again."
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote: the tensors on the CPU, and ``meta``.

    Args:
        remedy: what to do about a damaged file, in a sentence.

    Raises:
        InputError: no such file, a truncated or foreign one.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; wanted: a file that kdlab has saved.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        if _is_pytorchs(path):
            raise InputError(
                f"{path} is a PyTorch file, which has no card of kdlab's to say what network and what classes it is "
                "of; wanted: a file that kdlab has saved. Read its weights with load_weights(model, path), and write "
                "them with save_model(path, model, card)."
            ) from error
        raise InputError(
            f"{path} cannot be read as safetensors ({error}): it is truncated, damaged or of another format. {remedy}"
        ) from error
    try:
        return tensors, dict(json.loads(header["kdlab"]))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is a safetensors file, but not one of kdlab's: its header says nothing of the model."
        ) from error


def header_of(path: Path) -> dict[str, str] | None:
    """What a safetensors file says of itself, whatever it is called; None where it is no such file."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return None


def _is_pytorchs(path: Path) -> bool:
    """Whether torch.save wrote it, by its first bytes: a zip archive, or of old the pickle of a long number."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80\x02\x8a"))
    return False


def check_writable(folder: Path, name: str) -> None:
    """See that the folder can be made, or written in where it is there, before the work whose result goes there.

    Raises:
        InputError: it cannot be made or written to; ``name`` is what the user knows it by, such as "--out".
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        what = "written to" if folder.is_dir() else "made"
        raise InputError(f"{name} {folder} cannot be {what}: {error.strerror}. Name another folder.") from error


def why(error: OSError) -> str:
    """What the operating system says, but of a full disk in plain words."""
    return "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at every moment either the old one or the new one is there, whole.

    Raises:
        InputError: the disk is full, or the place cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # two processes may write the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(
            f"{path} could not be written: {why(error)} ({len(content) / 1e6:.1f} MB needed). "
            "What was there before is untouched; make room or choose another place, then run again."
        ) from error
