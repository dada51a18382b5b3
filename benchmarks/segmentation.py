"""Measure dense distillation: a step beside its formulas written by hand, its parts, the networks, and the chapters.

    python benchmarks/segmentation.py                   # everything
    python benchmarks/segmentation.py step networks     # some parts
    python benchmarks/segmentation.py --device cuda     # on a GPU
    python benchmarks/segmentation.py --write           # everything, kept in benchmarks/RESULTS.md

Compared variants take turns; a table shows medians with their quartiles in brackets; "ratio" is ours over the other's,
so that smaller is better. The losses alone stand in benchmarks/losses.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timing import Parts, Row, Run, command_line, compare, forward, memory_row, spread, take_turns, time_chapters
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.flop_counter import FlopCounterMode

from kdlab.distill import fold_batchnorm
from kdlab.models import PSPNet, UPerNet
from kdlab.recipes.segmentation import (
    NARROW_STUDENT,
    NARROW_TEACHER,
    PRESETS,
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    DenseDistillation,
)
from kdlab.recipes.settings import place

CLASSES, SIZE, BATCH = 7, 64, 32
LR = 1e-3
METHODS = {
    "CWD on logits": PRESETS["cwd-logits"],
    "CWD on features": PRESETS["cwd-features"],
    "MGD": PRESETS["mgd"],
}
PACKAGES = ["torch", "torchvision", "kdlab"]
CHAPTERS = ["04_channel_wise_distillation", "05_masked_generative_distillation"]


def step(device: str, repeats: int) -> list[Row]:
    """A step with the teacher running, time and peak memory, beside lasting hooks and the formulas as they stand."""
    rows = []
    for name, method in METHODS.items():
        variants = {"ours": _ours(method, device), "other": _by_hand(method, device)}
        times = take_turns(variants, repeats)
        rows.append(compare(f"{name}, a step", times["ours"], times["other"]))
        rows.append(memory_row(f"{name}, peak memory", variants, device))
    return rows


def parts(device: str, repeats: int) -> list[Row]:
    """A distillation step beside the sum of a teacher's forward pass and a student's step without distillation."""
    rows = []
    for name, method in METHODS.items():
        variants = {
            "step": _ours(method, device),
            "teacher": partial(forward, _network("teacher", device).eval(), _batch(device)[0]),
            "student": _alone(device),
        }
        if method.method == "mgd":
            variants["generator"] = _generator(method, device)
        times = take_turns(variants, repeats)
        both = times["teacher"] + times["student"]
        rows.append(compare(f"{name}, a step beside its two networks", times["step"], both, at_most=1.05))
        if method.method == "mgd":
            learns_too = both + times["generator"]
            rows.append(compare(f"{name}, beside these and its generator", times["step"], learns_too))
    return rows


def networks(device: str, repeats: int) -> list[Row]:
    """Parameters, multiply-adds of one image, and the latency of one image: the student's beside the teacher's."""
    rows = []
    for what, size, teacher, student in (
        ("narrow, 64x64", 64, _network("teacher", device), _network("student", device)),
        ("published, 512x512", 512, UPerNet(CLASSES).to(device), PSPNet(CLASSES).to(device)),
    ):
        image = torch.randn(1, 3, size, size, device=device)
        both = {"ours": student.eval(), "other": teacher.eval()}
        weights = {who: sum(p.numel() for p in net.parameters()) for who, net in both.items()}
        macs = {who: _macs(net, image) for who, net in both.items()}
        for unit, numbers, scale in (("million parameters", weights, 1e6), ("billion multiply-adds", macs, 1e9)):
            shown = [f"{numbers[who] / scale:.3g}" for who in ("ours", "other")]
            rows.append(Row(f"{what}: {unit}", *shown, f"{numbers['ours'] / numbers['other']:.3f}"))
        runs = {who: partial(forward, net, image) for who, net in both.items()}
        times = take_turns(runs, repeats if size == SIZE else max(3, repeats // 10))
        ratio = np.median(times["ours"]) / np.median(times["other"])
        rows.append(Row(f"{what}: latency", spread(times["ours"]), spread(times["other"]), f"{ratio:.3f}"))
    return rows


def chapters(device: str, repeats: int) -> list[Row]:
    """Chapters 04 and 05 executed in the fast profile with an empty cache."""
    return time_chapters(CHAPTERS, at_most=240)


def _network(who: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    network = UPerNet(CLASSES, **NARROW_TEACHER) if who == "teacher" else PSPNet(CLASSES, **NARROW_STUDENT)
    return place(network, torch.device(device))


def _batch(device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    masks = torch.randint(CLASSES, (BATCH, SIZE, SIZE), device=device)
    return torch.randn(BATCH, 3, SIZE, SIZE, device=device), masks


def _ours(method: DenseDistillation, device: str) -> Run:
    teacher = fold_batchnorm(_network("teacher", device), torch.randn(1, 3, SIZE, SIZE))  # as the recipe does
    distiller = method.distiller(_network("student", device), teacher, SIZE)
    place(distiller, torch.device(device))
    return _stepper(lambda images, masks: distiller(images, masks)["total"], distiller, device)


def _alone(device: str) -> Run:
    student = _network("student", device).train()
    return _stepper(lambda images, masks: F.cross_entropy(student(images), masks), student, device)


def _generator(method: DenseDistillation, device: str) -> Run:
    """What MGD trains beside the student, alone: the aligner and the generator, on maps that want a gradient."""
    learnt = place(_learnt(method, NARROW_STUDENT["channels"], NARROW_TEACHER["channels"]), torch.device(device))
    side = SIZE // 8
    maps = torch.randn(BATCH, NARROW_STUDENT["channels"], side, side, device=device).requires_grad_()
    wanted = torch.randn(BATCH, NARROW_TEACHER["channels"], side, side, device=device)
    return _stepper(lambda *_: F.mse_loss(learnt["generator"](learnt["align"](maps)), wanted), learnt, device)


def _by_hand(method: DenseDistillation, device: str) -> Run:
    """Hooks that stay, records of what they see, and the formula written down as it stands."""
    student, teacher = _network("student", device).train(), _network("teacher", device).eval()
    seen: dict[str, Tensor] = {}

    def record(who: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[who] = output

    student.get_submodule(STUDENT_LAYERS[method.layer]).register_forward_hook(partial(record, "student"))
    teacher.get_submodule(TEACHER_LAYERS[method.layer]).register_forward_hook(partial(record, "teacher"))
    learnt = _learnt(method, NARROW_STUDENT["channels"], NARROW_TEACHER["channels"])
    place(learnt, torch.device(device))

    def total(images: Tensor, masks: Tensor) -> Tensor:
        with torch.no_grad():
            teacher(images)
        task = F.cross_entropy(student(images), masks)
        mine = learnt["align"](seen["student"])
        its = F.interpolate(seen["teacher"], mine.shape[2:], mode="area")
        if method.method == "mgd":
            kept = (torch.rand(len(mine), 1, *mine.shape[2:], device=device) < 1 - method.mask_ratio).float()
            return task + method.weight * ((learnt["generator"](mine * kept) - its) ** 2).sum() / len(mine)
        p_student, p_teacher = (F.softmax(x.flatten(2) / method.temperature, dim=2) for x in (mine, its))
        kl = (p_teacher * (p_teacher.log() - p_student.log())).sum() * method.temperature**2
        return task + method.weight * kl / mine.shape[:2].numel()

    return _stepper(total, nn.ModuleDict({"student": student, "learnt": learnt}), device)


def _learnt(method: DenseDistillation, before: int, after: int) -> nn.ModuleDict:
    if method.layer == "logits":
        return nn.ModuleDict({"align": nn.Identity()})
    parts = {"align": nn.Conv2d(before, after, 1)}
    if method.method == "mgd":
        generator = (nn.Conv2d(after, after, 3, padding=1), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1))
        return nn.ModuleDict({**parts, "generator": nn.Sequential(*generator)})
    return nn.ModuleDict(parts)


def _stepper(total: Callable[[Tensor, Tensor], Tensor], learns: nn.Module, device: str) -> Run:
    optimizer = AdamW(learns.parameters(), LR, fused=True)
    images, masks = _batch(device)
    images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        total(images, masks).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


@torch.no_grad()
def _macs(network: nn.Module, image: Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() / 2


PARTS: Parts = {
    "step": (step, 30), "parts": (parts, 100), "networks": (networks, 50), "chapters": (chapters, 1),
}  # fmt: skip

if __name__ == "__main__":
    command_line(__doc__, PARTS, PACKAGES, "segmentation")
