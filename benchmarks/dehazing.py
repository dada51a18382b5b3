"""Measure dehazing: the teacher up to its taught map beside all of it, and the self-ensemble beside eight passes.

    python benchmarks/dehazing.py                    # everything
    python benchmarks/dehazing.py teacher ensemble   # some parts
    python benchmarks/dehazing.py --device cuda      # on a GPU, with the published networks throughout
    python benchmarks/dehazing.py --write            # everything, kept in benchmarks/RESULTS.md

Compared variants take turns; a table shows medians with their quartiles in brackets; "ratio" is ours over the other's,
so that smaller is better.
"""

from functools import partial

import numpy as np
import torch
from timing import (
    Parts,
    Row,
    Run,
    command_line,
    compare,
    forward,
    memory_row,
    spread,
    take_turns,
    time_chapters,
    wait_for,
)
from torch import Tensor, nn

from kdlab.distill import Distiller
from kdlab.models import KTDN, SRKTDN, DehazingTeacher
from kdlab.recipes.dehazing import NARROW, NARROW_TEACHER, Dehazing
from kdlab.recipes.settings import place
from kdlab.training import SelfEnsemble
from kdlab.training.self_ensemble import POSITIONS

PAIRS = {"narrow": (NARROW, NARROW_TEACHER), "published": ({}, {})}
CHAPTERS = ["10_dehazing_srktdn"]
PACKAGES = ["torch", "torchvision", "timm", "kdlab"]


def teacher(device: str, repeats: int) -> list[Row]:
    """The teacher's map of clean crops of 256x256: its pass stopped there by the distiller, beside the whole pass."""
    rows = []
    for name, (student_sizes, teacher_sizes) in PAIRS.items():
        torch.manual_seed(0)
        batch = 15 if device == "cuda" else 4 if name == "narrow" else 1
        clean, network = torch.rand(batch, 3, 256, 256, device=device), DehazingTeacher(**teacher_sizes)
        objective = place(Dehazing().objective(KTDN(**student_sizes), network), torch.device(device))
        assert isinstance(objective, Distiller)
        runs: dict[str, Run] = {"ours": partial(_asked, objective, clean), "other": partial(forward, network, clean)}
        times = take_turns(runs, repeats)
        rows.append(compare(f"{name}, {batch} crops", times["ours"], times["other"], at_most=0.75))
    return rows


def ensemble(device: str, repeats: int) -> list[Row]:
    """Restoring a square image in all eight positions: one batch, beside eight passes."""
    torch.manual_seed(0)
    network = place(SRKTDN(**{} if device == "cuda" else NARROW).eval(), torch.device(device))
    rows = []
    for size in (64, 256):
        image = torch.rand(1, 3, size, size, device=device)
        runs: dict[str, Run] = {
            "ours": partial(forward, SelfEnsemble(network), image), "other": partial(_eight_passes, network, image),
        }  # fmt: skip
        times = take_turns(runs, repeats)
        ratio = np.median(times["ours"]) / np.median(times["other"])
        rows.append(Row(f"{size}x{size}", spread(times["ours"]), spread(times["other"]), f"{ratio:.3f}"))
        rows.append(memory_row("its peak memory", runs, device))
    return rows


def chapters(device: str, repeats: int) -> list[Row]:
    """The chapter of dehazing, executed in the fast profile with an empty cache."""
    return time_chapters(CHAPTERS, at_most=180)


def _asked(objective: Distiller, clean: Tensor) -> None:
    objective.observe_teacher(clean, [clean])
    wait_for(clean)


@torch.no_grad()
def _eight_passes(network: nn.Module, image: Tensor) -> None:
    total = torch.zeros_like(image)
    for dims in POSITIONS:
        turned = image.flip(dims)
        total += network(turned).flip(dims) + network(turned.transpose(2, 3)).transpose(2, 3).flip(dims)
    total /= 2 * len(POSITIONS)
    wait_for(image)


PARTS: Parts = {"teacher": (teacher, 10), "ensemble": (ensemble, 10), "chapters": (chapters, 1)}

if __name__ == "__main__":
    command_line(__doc__, PARTS, PACKAGES, "dehazing")
