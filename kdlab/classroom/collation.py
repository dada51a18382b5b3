"""Chapter 08: student and teachers in their common space, step by step, and the widget that drags the step."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.classroom.figures import PALETTE
from kdlab.classroom.panel import LABELLED, WIDE, Panel, choice
from kdlab.classroom.svg import frame
from kdlab.distill import Distiller, Taps
from kdlab.losses.restoration import CKTLoss

WIDTH, HEIGHT, EDGE = 520, 330, 12


@dataclass(frozen=True)
class Snapshot:
    """Where some images are in the common space at one training step, as the student sees them and as their teachers.

    Args:
        student, teachers: for each tap a point for each image: the mean of its projection over all positions.
    """

    step: int
    student: Mapping[str, Float[Tensor, "n h"]]
    teachers: Mapping[str, Float[Tensor, "n h"]]

    def apart(self, tap: str) -> tuple[float, float]:
        """How far the student's points are from the teachers' of the same image, and these from their own mean."""
        mine, its = self.student[tap], self.teachers[tap]
        return (mine - its).norm(dim=1).mean().item(), (its - its.mean(dim=0)).norm(dim=1).mean().item()


@torch.no_grad()
def snapshot(step: int, distiller: Distiller, images: Float[Tensor, "n 3 h w"], labels: Sequence[Tensor]) -> Snapshot:
    """Project the images by the distiller's CKT terms as they are now.

    Args:
        images: those of the first weather first, and so on: the points come in this order.
        labels: the clean images and the weathers' numbers, as a batch has them.
    """
    terms = [term for term in distiller.terms if isinstance(term.loss, CKTLoss)]
    taps = list(dict.fromkeys(str(term.student) for term in terms))
    with Taps(distiller.student, taps) as read:
        distiller.student(images)
    observed = distiller.observe_teacher(images, labels)
    student: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    teachers: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    for term in terms:
        name, tap = str(term.of), str(term.student)
        part = distiller.teachers[name].part
        mine = read[tap] if part is None else read[tap][part(images, labels)]
        student[tap].append(distiller.student_connectors[term.name](mine).mean(dim=(2, 3)).cpu())
        its = observed[f"{name}/{term.teacher}"]
        teachers[tap].append(distiller.teacher_connectors[term.name](its).mean(dim=(2, 3)).cpu())
    return Snapshot(step, *({tap: torch.cat(parts) for tap, parts in side.items()} for side in (student, teachers)))


@dataclass(frozen=True)
class Plane:
    """The two directions in which points vary most, to look at many of them as at a map."""

    centre: Float[Tensor, " h"]
    axes: Float[Tensor, "h 2"]
    reach: Float[Tensor, " 2"]  # how far the map goes each way

    def of(self, points: Float[Tensor, "n h"]) -> Float[Tensor, "n 2"]:
        """Where the points are, from -1 to 1 each way; what is outside is put on the edge."""
        return ((points - self.centre) @ self.axes / self.reach).clamp(-1, 1)


def fit_plane(points: Float[Tensor, "n h"]) -> Plane:
    """The first two principal components, with a margin; each axis points to where its largest weight is positive."""
    mean = points.mean(dim=0)
    axes = torch.linalg.svd(points - mean, full_matrices=False).Vh[:2].T
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    low, high = torch.aminmax((points - mean) @ axes, dim=0)
    return Plane(mean + axes @ (low + high) / 2, axes, 1.25 * (high - low).clamp(min=1e-12) / 2)


def plane_of(run: Sequence[Snapshot], tap: str) -> Plane:
    """One plane for all snapshots of a run: so that the steps can be compared.

    Fitted to the points of both sides: in the directions of the teachers' alone, how far away the student begins would
    hardly show.
    """
    return fit_plane(torch.cat([side[tap] for seen in run for side in (seen.student, seen.teachers)]))


def common_space_explorer(
    runs: Mapping[str, Sequence[Snapshot]], weather: Int[Tensor, " n"], weathers: Sequence[str]
) -> Panel:
    """Choose a run and a tap, drag the training step: each image as the student's point and as its teacher's.

    The panel has the controls as ``panel.run``, ``panel.tap`` and ``panel.step``.

    Args:
        runs: by name; their snapshots have the same images and the same steps, evenly spaced.
        weather: of each image, its number.
        weathers: their names, in the order of the numbers.
    """
    first = next(iter(runs.values()))
    steps = [seen.step for seen in first]
    run, tap = choice("Run", list(runs)), choice("Tap", list(first[0].student))
    step = widgets.IntSlider(
        value=0, min=0, max=steps[-1], step=steps[1] - steps[0], description="Training step", style=LABELLED,
        layout=WIDE,
    )  # fmt: skip
    planes = {(name, layer): plane_of(runs[name], layer) for name in runs for layer in first[0].student}

    def draw() -> str:
        seen = min(runs[run.value], key=lambda seen: abs(seen.step - step.value))  # any number may be typed
        plane = planes[run.value, tap.value]
        distance, spread = seen.apart(tap.value)
        share = (
            f"the distance is {distance / spread:.2f} times the spread"
            if spread > 1e-6
            else "nothing is left to compare"
        )
        words = (
            f"step {seen.step}, {tap.value}: the student's points are {distance:.3f} from their teachers', and these "
            f"{spread:.3f} from their mean; {share}."
        )
        mine, its = plane.of(seen.student[tap.value]), plane.of(seen.teachers[tap.value])
        return scatter(mine, its, weather.tolist(), weathers, words) + f"<p>{html.escape(words)}</p>"

    panel = Panel([run, tap, step], draw, "collation")
    panel.run, panel.tap, panel.step = run, tap, step
    return panel


def scatter(
    student: Float[Tensor, "n 2"],
    teachers: Float[Tensor, "n 2"],
    weather: Sequence[int],
    weathers: Sequence[str],
    alt: str,
) -> str:
    """Points in -1 to 1 as SVG, the teachers' filled and the student's hollow, a line between those of one image."""
    scale = HEIGHT / 2 - EDGE
    lines, filled, hollow, legend = [], [], [], []
    for mine, its, number in zip(student.tolist(), teachers.tolist(), weather, strict=True):
        (x1, y1), (x2, y2) = ((HEIGHT / 2 + x * scale, HEIGHT / 2 - y * scale) for x, y in (mine, its))
        ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        lines.append(f'<line {ends} stroke="{PALETTE[number]}" opacity="0.35"/>')
        filled.append(_filled(number, x2, y2))
        hollow.append(_hollow(number, x1, y1))
    for number, name in enumerate(weathers):
        top = 30 + 46 * number
        for below, who, mark in ((0, "teacher", _filled), (20, "student", _hollow)):
            legend.append(mark(number, HEIGHT + 30, top + below))
            words = f"{name}, {who}"
            legend.append(f'<text x="{HEIGHT + 44}" y="{top + below + 4}">{html.escape(words)}</text>')
    size = f'width="{HEIGHT - 2}" height="{HEIGHT - 2}"'
    border = f'<rect x="1" y="1" {size} fill="none" stroke="currentColor" opacity="0.4"/>'
    # The student's last, or a cloud would hide them.
    return frame(WIDTH, HEIGHT, alt, [border, *lines, *filled, *hollow, *legend])


def _filled(number: int, x: float, y: float) -> str:
    return _mark(number, x, y, 4, f'fill="{PALETTE[number]}"')


def _hollow(number: int, x: float, y: float) -> str:
    return _mark(number, x, y, 6, f'fill="none" stroke="{PALETTE[number]}" stroke-width="1.5"')


def _mark(number: int, x: float, y: float, size: int, paint: str) -> str:
    """A circle, a square or a triangle, twice ``size`` across."""
    match number % 3:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" {paint}/>'
        case 1:
            return f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}" {paint}/>'
        case _:
            return f'<path d="M{x:.1f} {y - size:.1f}l{size} {2 * size}h{-2 * size}z" {paint}/>'
