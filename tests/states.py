"""What a training has saved, and whether it is what another one has."""

from pathlib import Path

import torch

from kdlab.files import load_tensors


def weights(out: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """The weights that a training left in its folder, after its last epoch or its best."""
    return load_tensors(out / f"{name}.safetensors")[0]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """To the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
