"""The first cell of every notebook."""

import os
import platform
from dataclasses import dataclass

import torch

from kdlab import __version__
from kdlab.classroom.figures import use_style
from kdlab.errors import InputError
from kdlab.training import pick_device


@dataclass(frozen=True)
class Profile:
    """How large the notebook's runs are: ``fast`` (the default: minutes on a CPU) or ``full`` (for a GPU)."""

    name: str
    device: torch.device

    @property
    def full(self) -> bool:
        return self.name == "full"


def start() -> Profile:
    """Read ``KDLAB_PROFILE``, choose the device, set the figures' style, and print what was chosen.

    Raises:
        InputError: KDLAB_PROFILE is neither "fast" nor "full".
    """
    name = os.environ.get("KDLAB_PROFILE", "fast")
    if name not in ("fast", "full"):
        raise InputError(f"KDLAB_PROFILE is {name!r}; wanted: 'fast' or 'full'.")
    device = pick_device()
    use_style()
    torch.manual_seed(0)
    # What a cell compares with a formula, or with the CPU, is equal on a GPU too: TF32 keeps three digits.
    torch.backends.cudnn.allow_tf32 = False
    print(
        f"kdlab {__version__} · profile {name} · {device.type}, {torch.get_num_threads()} threads · "
        f"Python {platform.python_version()} · PyTorch {torch.__version__.partition('+')[0]}"
    )
    return Profile(name, device)
