"""Tests on another device: what is computed on a GPU is what is computed on the CPU, as far as its numbers allow.

`make test-gpu` runs these tests on a CUDA GPU. Without one they test float32 on the CPU, and on a device that only
keeps its tensors apart from the CPU's: what is not moved along is found there, too.
"""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from second_device import NAME, second_device

# A GPU adds up in another order, and its convolutions may take other algorithms.
TOLERANCE = {"cpu": 1e-4, NAME: 1e-4, "cuda": 1e-2}
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
ON_SECOND = os.environ.get("KDLAB_TEST_DEVICE") == NAME
IN_ITS_OWN_PROCESS = pytest.mark.skipif(
    ON_SECOND or torch.cuda.is_available(), reason="is this very run, or a GPU shows it"
)


@pytest.fixture(params=[NAME] if ON_SECOND else ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def device(request, monkeypatch):
    # Or a GPU's convolutions round their inputs to 10 bits.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with second_device() if ON_SECOND else nullcontext():
        yield torch.device(request.param)


def passes_on_the_second_device(tests: Path) -> None:
    """Run them once more, in a process of its own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    run = subprocess.run(command, env=own | {"KDLAB_TEST_DEVICE": NAME}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]


def agree(mine: torch.Tensor, reference: torch.Tensor, device: torch.device) -> None:
    """As a whole: single small entries may differ by more."""
    error = (mine.detach().cpu().double() - reference.detach().double()).norm()
    assert error <= TOLERANCE[device.type] * reference.detach().norm() + 1e-9


def same_losses(mine: list[float], reference: list[float], device: torch.device) -> None:
    """Those of a training, from step to step of which the differences add up."""
    assert mine == pytest.approx(reference, rel=3 * TOLERANCE[device.type])
