"""Measure the speed of response distillation, each figure beside what it is compared with, in one run.

    python benchmarks/response.py                       # everything
    python benchmarks/response.py step kdloss           # some parts
    python benchmarks/response.py --write               # everything, kept in benchmarks/RESULTS.md

Compared variants take turns, and a table shows medians with their quartiles in brackets; "ratio" is ours over the
other's, so that smaller is better. The comparison of KDLoss wants a package that kdlab does not need otherwise:

    pip install --no-deps torchdistill==1.1.5
"""

import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from timing import (
    Parts,
    Row,
    Run,
    command_line,
    compare,
    execute_notebook,
    interleave,
    keep_freed_memory,
    seconds,
    spread,
    yes,
)
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, Dataset

from kdlab.classroom.response import alpha_explorer, temperature_explorer
from kdlab.data import load_digits
from kdlab.distill import Distiller, TeacherCache, Term
from kdlab.losses import KDLoss
from kdlab.models import StudentCNN
from kdlab.recipes.few_labels import NARROW
from kdlab.recipes.response import LOGITS, digits_teacher
from kdlab.training import fit, predict_logits

WIDE = (32, 64, 128, 256)
WIDTHS = {"widths 8 to 64": NARROW, "widths 32 to 256": WIDE}
CLASSES = 10
TEMPERATURE, ALPHA, LR = 4.0, 0.7, 1e-3
BATCH = 64
EPOCHS = 10  # in one timed run of the training step, so that the start of a run weighs little
CALLS = 20  # of a loss in one timed run: few, so that most runs pass without an interruption
PACKAGES = ["torch", "torchvision", "kdlab", "torchdistill"]
CHAPTERS = ["00_start_here", "01_response_distillation"]


def step(device: str, repeats: int) -> list[Row]:
    """A training step through Distiller and fit, and the same step written by hand; freed memory stays with both."""
    keep_freed_memory()
    train = load_digits().train
    torch.manual_seed(1)
    teacher = StudentCNN(CLASSES, NARROW)
    logits, _ = predict_logits(teacher, DataLoader(train, BATCH))
    cached = TeacherCache({LOGITS: logits}, fingerprint="").attach(train)
    narrow, rows = partial(_student, NARROW), []
    for name, widths in WIDTHS.items():
        rows += _compare_steps(f"step, {name}, cached teacher", cached, teacher, partial(_student, widths), repeats)
    rows += _compare_steps("step, widths 8 to 64, small teacher run", train, teacher, narrow, repeats)
    densenet, _ = digits_teacher(load_digits())
    densenet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its fastest form on a CPU
    what = "step, widths 32 to 256, DenseNet121 run: the article's pair"
    rows += _compare_steps(what, train, densenet, partial(_student, WIDE), repeats, epochs=2)  # a step is long
    what = "step, a linear student, cached teacher: little but what Distiller and fit add"
    return rows + _compare_steps(what, cached, teacher, _linear_student, repeats, at_most=None)


def _compare_steps(
    what: str, train: Dataset, teacher: nn.Module, build: Callable[[], nn.Module], repeats: int,
    epochs: int = EPOCHS, at_most: float | None = 1.03,
) -> list[Row]:  # fmt: skip
    loader = _loader(train)
    students: dict[str, nn.Module] = {}

    def through_kdlab() -> Run:
        students["ours"] = build()
        return _fit(_distiller(students["ours"], teacher), loader, epochs)

    def by_hand() -> Run:
        students["other"] = student = build()
        return partial(_train_by_hand, student, teacher, AdamW(student.parameters(), LR, fused=True), loader, epochs)

    times = interleave({"ours": through_kdlab, "other": by_hand}, repeats)
    steps = epochs * len(loader)
    ours, other = (torch.cat([p.flatten() for p in students[name].parameters()]) for name in ("ours", "other"))
    apart = (ours - other).abs().max().item()
    same = Row(f"largest difference of the weights after {steps} of these", f"{apart:.1g}", "", "", "0", yes(not apart))
    return [compare(what, times["ours"] / steps, times["other"] / steps, at_most), same]


def _train_by_hand(
    student: nn.Module, teacher: nn.Module, optimizer: Optimizer, loader: DataLoader, epochs: int
) -> None:
    """The least that does the same: nothing is recorded, shown or checked."""
    student.train()
    for epoch in range(epochs):
        torch.manual_seed(1_000_003 * epoch)  # as fit does, for the same batches and the same dropout
        for images, labels, *observed in loader:
            if observed:
                teacher_logits = observed[0][LOGITS]
            else:
                with torch.no_grad():
                    teacher_logits = teacher(images)
            student_logits = student(images)
            task = F.cross_entropy(student_logits, labels)
            softened = teacher_logits / TEMPERATURE
            gap = F.log_softmax(softened, dim=1) - F.log_softmax(student_logits / TEMPERATURE, dim=1)
            kd = (F.softmax(softened, dim=1) * gap).sum() * (TEMPERATURE**2 / len(images))
            optimizer.zero_grad()
            ((1 - ALPHA) * task + ALPHA * kd).backward()
            optimizer.step()


def cache(device: str, repeats: int) -> list[Row]:
    """An epoch with cached teacher logits, and one that runs DenseNet121 at each step."""
    train = load_digits().train
    teacher, _ = digits_teacher(load_digits())
    teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its fastest form on a CPU
    rows = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "logits.safetensors"
        once = seconds(lambda: TeacherCache.build(teacher, [LOGITS], train, path=path))
        cached = TeacherCache.build(teacher, [LOGITS], train, path=path).attach(train)
    for name, widths in WIDTHS.items():
        rows += _compare_epochs(f"epoch, {name}, cached or recomputed logits", cached, train, teacher, widths, repeats)
    return [*rows, Row("building the cache, once", f"{once:.2f} s")]


def _compare_epochs(
    what: str, cached: Dataset, train: Dataset, teacher: nn.Module, widths: tuple[int, ...], repeats: int
) -> list[Row]:
    totals: dict[str, list[Tensor]] = {}

    def epoch(name: str, dataset: Dataset) -> Run:
        distiller = _distiller(_student(widths), teacher)
        totals[name] = []
        distiller.register_forward_hook(lambda _, inputs, losses: totals[name].append(losses["total"].detach()))
        return _fit(distiller, _loader(dataset), epochs=1)

    times = interleave({"ours": partial(epoch, "ours", cached), "other": partial(epoch, "other", train)}, repeats)
    ours, other = torch.stack(totals["ours"]), torch.stack(totals["other"])
    apart = ((ours - other).abs() / other).max().item()
    same = Row(
        f"largest relative difference of the loss over the {len(ours)} steps",
        f"{apart:.1g}", goal="0, up to rounding (1e-5)", met=yes(apart <= 1e-5),
    )  # fmt: skip
    return [compare(f"{what} (goal: 4 times faster)", times["ours"], times["other"], at_most=0.25), same]


def kdloss(device: str, repeats: int) -> list[Row]:
    """KDLoss forward and backward, and torchdistill's: its soft part, which leaves out the factor T²."""
    try:
        from torchdistill.losses.mid_level import KDLoss as Peer  # type: ignore[import-not-found]
    except ImportError as error:
        return [Row(f"KDLoss: no peer ({error}); get it by `pip install --no-deps torchdistill==1.1.5`")]
    peer = Peer("logits", "output", "logits", "output", temperature=TEMPERATURE, alpha=0)
    ours = KDLoss(TEMPERATURE)
    rows = []
    for shape in [(64, 100), (256, 1000)]:
        torch.manual_seed(0)
        student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape)

        def theirs(student: Tensor, teacher: Tensor) -> Tensor:
            return peer({"logits": {"output": student}}, {"logits": {"output": teacher}})

        variants = {
            "ours": partial(partial, _forward_and_backward, ours, student, teacher),
            "other": partial(partial, _forward_and_backward, theirs, student, teacher),
        }
        times = interleave(variants, repeats, dict.fromkeys(variants, CALLS))
        rows.append(compare(f"KDLoss, logits {shape}", times["ours"], times["other"], at_most=1.0))
        value, wanted = ours(student, teacher).item() / TEMPERATURE**2, theirs(student, teacher).item()
        rows.append(
            Row(
                f"its value over T², logits {shape}", f"{value:.6f}", f"{wanted:.6f}", f"{value / wanted:.7f}",
                "1 to 1e-5", yes(abs(value / wanted - 1) <= 1e-5),
            )
        )  # fmt: skip
    return rows


def _forward_and_backward(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> None:
    student.grad = None
    loss(student, teacher).backward()


def imports(device: str, repeats: int) -> list[Row]:
    """What importing kdlab takes where torch and torchvision are imported already, in a fresh Python each time."""
    rows = []
    for line, limit in [("import kdlab", 0.3), ("import kdlab.distill, kdlab.losses", None)]:
        timed = f"began = time.perf_counter(); {line}; print(time.perf_counter() - began)"
        command = [sys.executable, "-c", f"import time, torch, torchvision; {timed}"]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(repeats)]
        times = np.array([float(run.stdout) for run in runs])
        goal, met = (f"adds less than {limit} s", yes(np.median(times) < limit)) if limit else ("", "")
        rows.append(Row(f"`{line}` after torch and torchvision", spread(times), goal=goal, met=met))
    return rows


def slider(device: str, repeats: int) -> list[Row]:
    """From a new temperature to the new picture, at each of the slider's; the goal is for the slowest of them."""
    torch.manual_seed(0)
    data = load_digits()
    images, labels = data.test.images[:BATCH], torch.tensor(data.test.targets[:BATCH])  # type: ignore[attr-defined]
    teacher, student = 5 * torch.randn(2, BATCH, CLASSES)
    panels = {
        "temperature_explorer": temperature_explorer(images, teacher, student, labels, data.classes),
        "alpha_explorer": alpha_explorer(teacher, student, labels, data.classes),
    }
    rows = []
    for name, panel in panels.items():
        control = panel.temperature
        values = np.arange(control.min, control.max + control.step / 2, control.step).tolist()
        times = np.array([[seconds(partial(setattr, control, "value", T)) for T in values] for _ in range(repeats)])
        slowest = np.median(times, axis=0).max()
        what = f"a temperature in {name}; the slowest: {slowest * 1e3:.3g} ms"
        rows.append(Row(what, spread(times), goal="less than 50 ms", met=yes(slowest < 0.05)))
    return rows


def chapters(device: str, repeats: int) -> list[Row]:
    """Chapters 00 and 01 executed in the fast profile with an empty cache, then again with the cache that they left."""
    taken: dict[str, list[list[float]]] = {"empty": [], "full": []}
    for _ in range(repeats):
        with TemporaryDirectory() as folder:
            for cached in taken.values():
                cached.append([seconds(partial(execute_notebook, name, folder)) for name in CHAPTERS])
    rows = []
    for state, limit in [("empty", 180), ("full", 60)]:
        times = np.array(taken[state])
        for name, column in zip(CHAPTERS, times.T, strict=True):
            rows.append(Row(f"{name}, {state} cache", spread(column)))
        both = times.sum(axis=1)
        met = yes(np.median(both) < limit)
        rows.append(Row(f"both, {state} cache", spread(both), goal=f"less than {limit} s", met=met))
    return rows


def _student(widths: tuple[int, ...]) -> StudentCNN:
    torch.manual_seed(0)
    return StudentCNN(CLASSES, widths).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _linear_student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(pixels=nn.Flatten(), classifier=nn.Linear(3 * 32 * 32, CLASSES)))


def _distiller(student: nn.Module, teacher: nn.Module) -> Distiller:
    kd = Term("kd", KDLoss(TEMPERATURE), student="", teacher=LOGITS, weight=ALPHA)
    return Distiller(student, teacher, [kd], task=nn.CrossEntropyLoss(), task_weight=1 - ALPHA)


def _loader(train: Dataset) -> DataLoader:
    return DataLoader(train, BATCH, shuffle=True, drop_last=True)


def _fit(distiller: Distiller, loader: DataLoader, epochs: int) -> Run:
    optimizer = AdamW(distiller.parameters(), LR, fused=True)
    return partial(
        fit, distiller, loader, epochs=epochs, optimizer=optimizer, evaluate=lambda student: {"accuracy": 0.0}
    )


PARTS: Parts = {
    "step": (step, 24), "cache": (cache, 2), "kdloss": (kdloss, 200), "import": (imports, 4), "slider": (slider, 5),
    "chapters": (chapters, 1),
}  # fmt: skip

if __name__ == "__main__":
    command_line(__doc__, PARTS, PACKAGES, "response", devices=["cpu"])
