"""Measure two-stage restoration: HCR beside its formula, steps beside literal ones and plain ones, and inference.

    python benchmarks/restoration.py                    # everything
    python benchmarks/restoration.py hcr step           # some parts
    python benchmarks/restoration.py --device cuda      # on a GPU, with the published crop and batch
    python benchmarks/restoration.py --write            # everything, kept in benchmarks/RESULTS.md

Compared variants take turns; a table shows medians with their quartiles in brackets; "ratio" is ours over the other's,
so that smaller is better.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from timing import (
    Parts,
    Row,
    Run,
    command_line,
    compare,
    forward,
    memory_row,
    peak_bytes,
    spread,
    take_turns,
    time_chapters,
    wait_for,
    yes,
)
from torch import Tensor, nn

from kdlab.data.weather import WEATHERS
from kdlab.distill import Distiller, Projector
from kdlab.losses.restoration import SLICE_WEIGHTS, mean_distance_of_all_pairs
from kdlab.models import MSBDN, VGGSlices
from kdlab.recipes.restoration import TwoStage
from kdlab.recipes.settings import place

LR = 2e-4
PUBLISHED = TwoStage()
NETWORKS = {"narrow (4; VGG19 at 16)": (4, 16), "published (16; VGG19 at 64)": (16, 64)}
CHAPTERS = ["07_weather_and_teachers", "08_knowledge_collation", "09_knowledge_examination"]
PACKAGES = ["torch", "torchvision", "kdlab"]


def hcr(device: str, repeats: int) -> list[Row]:
    """The mean distance of all pairs of 16 maps of 64x64x64 with its gradient, beside the tensor of 16x16 maps."""
    torch.manual_seed(0)
    a, b = torch.rand(2, 16, 64, 64, 64, device=device)
    a.requires_grad_()
    ways = {"ours": mean_distance_of_all_pairs, "other": _all_at_once}
    runs = {who: partial(_with_gradient, way, a, b) for who, way in ways.items()}
    (mine, my_gradient), (its, its_gradient) = (run() for run in runs.values())
    error = max(
        (mine - its).abs().item() / its.item(),
        ((my_gradient - its_gradient).abs().max() / its_gradient.abs().max()).item(),
    )
    times = take_turns(runs, repeats)
    rows = [compare("value and gradient", times["ours"], times["other"], at_most=0.1)]
    memory = {who: peak_bytes(run, device) for who, run in runs.items()}
    shown = (f"{taken / 2**20:.4g} MiB" for taken in memory.values())
    ratio = memory["ours"] / memory["other"]
    rows.append(Row("peak memory", *shown, f"{ratio:.3f}", "less than 0.1", yes(ratio < 0.1)))
    return [*rows, Row("largest relative difference of value and gradient", f"{error:.1e}")]


def step(device: str, repeats: int) -> list[Row]:
    """A step of each stage beside a literal one: two VGG19s, a pass for each kind of image, a tensor of all pairs."""
    crop, batch = (224, 33) if device == "cuda" else (64, 6)
    rows = []
    for name, (width, features) in NETWORKS.items():
        for stage in (1, 2):
            images = _images(device, crop, batch)
            runs = {"ours": _ours(stage, width, features, images), "other": _literal(stage, width, features, images)}
            rounds = repeats if width == 4 else max(3, repeats // 4)
            times = take_turns(runs, rounds)
            rows.append(
                compare(
                    f"{name}, stage {stage}, {batch} crops of {crop}", times["ours"], times["other"], at_most=1 / 1.3
                )
            )
            rows.append(memory_row("its peak memory", runs, device))
    return rows


def cost(device: str, repeats: int) -> list[Row]:
    """A step of each stage, narrow networks, beside a step of the student alone on the clean images."""
    images = _images(device, 64, 6)
    stages = {"stage 1": TwoStage(collation=1.0), "stage 2": TwoStage(collation=0.0)}
    plans = stages | {"alone": TwoStage(collation=0.0, hcr=0.0)}
    runs = {who: _ours(1, 4, 16, images, plan) for who, plan in plans.items()}
    times = take_turns(runs, repeats)
    alone = times.pop("alone")
    ratios = {stage: np.median(taken) / np.median(alone) for stage, taken in times.items()}
    rows = [Row(stage, spread(taken), spread(alone), f"{ratios[stage]:.2f}") for stage, taken in times.items()]
    return [*rows, Row("half a run of each", ratio=f"{np.mean(list(ratios.values())):.2f}")]


def precision(device: str, repeats: int) -> list[Row]:
    """A step of each stage with the published networks, crop and batch, in bf16 beside fp32, and images a second."""
    rows = []
    images = _images(device, 224, 33)
    for stage in (1, 2):
        runs = {"ours": _ours(stage, 16, 64, images, half=True), "other": _ours(stage, 16, 64, images)}
        times = take_turns(runs, repeats)
        rows.append(compare(f"stage {stage}", times["ours"], times["other"]))
        rows.append(Row("images a second", *(f"{33 / np.median(taken):.4g}" for taken in times.values())))
        rows.append(memory_row("peak memory", runs, device))
    return rows


def inference(device: str, repeats: int) -> list[Row]:
    """Restoring one image of 480x640: the narrow network beside the published one."""
    image = torch.rand(1, 3, 480, 640, device=device)
    runs = {}
    for who, width in (("ours", 4), ("other", 16)):
        runs[who] = partial(forward, place(MSBDN(width).eval(), torch.device(device)), image)
    times = take_turns(runs, repeats)
    memory = [f"{peak_bytes(run, device) / 2**20:.4g} MiB" for run in runs.values()]
    ratio = np.median(times["ours"]) / np.median(times["other"])
    return [
        Row("width 4 beside 16, time", spread(times["ours"]), spread(times["other"]), f"{ratio:.3f}"),
        Row("peak memory beside the weights", *memory),
    ]


def chapters(device: str, repeats: int) -> list[Row]:
    """The chapters of restoration, executed in the fast profile with an empty cache."""
    return time_chapters(CHAPTERS, at_most=360)


def _all_at_once(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None] - b[None]).abs().mean()


def _with_gradient(distance: object, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    value = distance(a, b)
    (gradient,) = torch.autograd.grad(value, a)
    wait_for(a)
    return value.detach(), gradient


def _images(device: str, crop: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Degraded, clean, and the weathers' numbers, a third of the batch each."""
    torch.manual_seed(1)
    degraded, clean = torch.rand(2, batch, 3, crop, crop, device=device)
    return degraded, clean, torch.arange(3, device=device).repeat_interleave(batch // 3)


def _networks(width: int) -> tuple[MSBDN, dict[str, MSBDN]]:
    torch.manual_seed(0)
    return MSBDN(width), {weather: MSBDN(width) for weather in WEATHERS}


def _ours(
    stage: int,
    width: int,
    features: int,
    images: tuple[Tensor, Tensor, Tensor],
    plan: TwoStage = PUBLISHED,
    half: bool = False,
) -> Run:
    student, teachers = _networks(width)
    distiller = plan.objective(student, teachers, VGGSlices("none", False, features), WEATHERS, epochs=2)
    place(distiller, images[0].device)
    if isinstance(distiller, Distiller):  # the student alone has no schedule
        distiller.set_epoch(stage - 1, 2)
    adam = torch.optim.Adam(distiller.parameters(), LR, fused=True)
    degraded, clean, weather = images

    def run() -> None:
        with torch.autocast(degraded.device.type, torch.bfloat16, enabled=half):
            total = distiller(degraded, [clean, weather])["total"]
        adam.zero_grad()
        total.backward()
        adam.step()
        wait_for(degraded)

    return run


def _literal(stage: int, width: int, features: int, images: tuple[Tensor, Tensor, Tensor]) -> Run:
    """As the two-stage system's description goes, line by line, in PyTorch's default memory format."""
    device = images[0].device
    student, teachers = _networks(width)
    channels = student.tap_channels
    to_space = nn.ModuleList(Projector(c, c // 2) for c in channels)
    teachers_to_space = nn.ModuleList(nn.ModuleList(Projector(c, c // 2) for c in channels) for _ in WEATHERS)
    back = nn.ModuleList(nn.ModuleList(Projector(c // 2, c) for c in channels) for _ in WEATHERS)
    learns = nn.ModuleList([student, to_space, teachers_to_space, back]).to(device)
    for teacher in teachers.values():
        teacher.to(device).eval().requires_grad_(False)
    soft, hard = (VGGSlices("none", False, features).to(device) for _ in range(2))
    adam = torch.optim.Adam(learns.parameters(), LR)
    degraded, clean, weather = images
    seen: dict[str, Tensor] = {}
    for who, network in {"student": student, **teachers}.items():
        for tap in MSBDN.TAPS:
            hook = partial(_record, seen, f"{who} {tap}")
            network.get_submodule(tap).register_forward_hook(hook)

    def first() -> Tensor:
        with torch.no_grad():
            told = torch.cat([teachers[name](degraded[weather == k]) for k, name in enumerate(WEATHERS)])
        restored = student(degraded)
        total = F.l1_loss(restored, told)
        for level, tap in enumerate(MSBDN.TAPS):
            its = [seen[f"{name} {tap}"] for name in WEATHERS]
            projected = [teachers_to_space[k][level](its[k]) for k in range(3)]
            returned = [back[k][level](projected[k]) for k in range(3)]
            total = total + F.l1_loss(to_space[level](seen[f"student {tap}"]), torch.cat(projected))
            total = total + 0.05 * F.l1_loss(torch.cat(returned), torch.cat(its))
        maps = zip(SLICE_WEIGHTS, soft(restored), soft(told), soft(degraded), strict=True)
        return total + 0.1 * sum(w * F.l1_loss(a, p) / (F.l1_loss(a, n) + 1e-7) for w, a, p, n in maps)

    def second() -> Tensor:
        restored = student(degraded)
        maps = zip(SLICE_WEIGHTS, hard(restored), hard(clean), hard(degraded), strict=True)
        contrast = sum(w * F.l1_loss(a, p) / (_all_at_once(a, n) + 1e-7) for w, a, p, n in maps)
        return F.l1_loss(restored, clean) + 0.2 * contrast

    def run() -> None:
        adam.zero_grad()
        (first() if stage == 1 else second()).backward()
        adam.step()
        wait_for(degraded)

    return run


def _record(seen: dict[str, Tensor], name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
    seen[name] = output


PARTS: Parts = {
    "hcr": (hcr, 7), "step": (step, 20), "cost": (cost, 20), "precision": (precision, 10), "inference": (inference, 7),
    "chapters": (chapters, 1),
}  # fmt: skip

if __name__ == "__main__":
    command_line(__doc__, PARTS, PACKAGES, "restoration", only_cuda=["precision"])
