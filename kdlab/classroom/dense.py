"""The widgets of chapter 04: which positions a channel speaks of at a temperature, and where an answer is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from kdlab.classroom.panel import Panel, choice, slider
from kdlab.classroom.pictures import coloured, picture_html, side_by_side
from kdlab.classroom.scenes import (
    CLASS_COLOURS,
    ERROR_COLOURS,
    error_kinds,
    errors_over,
    legend_html,
    overlaid,
    painted,
)
from kdlab.losses import CWDLoss, PixelCrossEntropy


def over_positions(maps: Float[Tensor, "*n h w"], temperature: float) -> Float[Tensor, "*n h w"]:
    """Each map as CWD sees it: a softmax over its positions."""
    return torch.softmax(maps.flatten(-2) / temperature, dim=-1).view_as(maps)


def effective_positions(p: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """Over how many positions a distribution is spread: e to its entropy; 1 for one peak, h w for a flat map."""
    return torch.special.entr(p).sum(dim=(-2, -1)).exp()


@dataclass(frozen=True)
class Looked:
    """One channel of both networks at a temperature: distributions (h, w), their effective positions, KL in nats."""

    teacher: Float[Tensor, "h w"]
    student: Float[Tensor, "h w"]
    teacher_positions: float
    student_positions: float
    kl: float


def look(teacher: Float[Tensor, "h w"], student: Float[Tensor, "h w"], temperature: float) -> Looked:
    """Both maps of a channel as distributions over the positions, and how far the student's is from the teacher's."""
    p_teacher, p_student = over_positions(teacher, temperature), over_positions(student, temperature)
    kl = CWDLoss(temperature)(student[None, None], teacher[None, None]).item() / temperature**2
    return Looked(
        p_teacher, p_student, effective_positions(p_teacher).item(), effective_positions(p_student).item(), kl
    )


def channel_explorer(
    images: UInt8[Tensor, "n 3 _ _"],
    teacher: Float[Tensor, "n k h w"],
    students: Mapping[str, Float[Tensor, "n k h w"]],
    names: Sequence[str],
    channels: Sequence[str],
) -> Panel:
    """Pick a scene, a channel and a student, drag the temperature: which positions both networks speak of.

    The panel has the controls as ``panel.scene``, ``panel.channel``, ``panel.student`` and ``panel.temperature``.

    Args:
        images: before the normalisation.
        teacher, students: the maps that are compared; several students by name.
        names, channels: of the scenes, of the channels.
    """
    scene = choice("Scene", [(name, index) for index, name in enumerate(names)])
    channel = choice("Channel", [(name, index) for index, name in enumerate(channels)])
    student = choice("Student", list(students))
    temperature = slider("Temperature τ", 1.0, 0.25, 20.0, 0.25)

    def draw() -> str:
        at, tau = (scene.value, channel.value), temperature.value
        seen = look(teacher[at], students[student.value][at], tau)
        limits = (0.0, float(torch.maximum(seen.teacher.max(), seen.student.max())))
        positions = seen.teacher.numel()
        pictures = [picture_html(images[scene.value].movedim(0, -1), names[scene.value])]
        for who, p, number in (
            ("teacher", seen.teacher, seen.teacher_positions),
            (student.value, seen.student, seen.student_positions),
        ):
            pictures.append(picture_html(coloured(p, limits), f"{who}: {number:.1f} of {positions} positions"))
        words = (
            f"Channel “{channels[channel.value]}” at τ = {tau:g}: both maps from 0, dark, to {limits[1]:.3f}, bright; "
            f"flat would be {1 / positions:.3f} everywhere. KL = {seen.kl:.4f}, times τ² = {seen.kl * tau**2:.4f}"
        )
        return f"{side_by_side(pictures)}<p>{words}</p>"

    panel = Panel([scene, channel, student, temperature], draw, "channel")
    panel.scene, panel.channel, panel.student, panel.temperature = scene, channel, student, temperature
    return panel


def error_explorer(
    images: UInt8[Tensor, "n 3 h w"],
    masks: Int[Tensor, "n h w"],
    answers: Mapping[str, Int[Tensor, "n h w"]],
    names: Sequence[str],
    classes: Sequence[str],
) -> Panel:
    """Pick a scene: its mask, what each network answers, and where that is wrong in which way.

    The panel has the control as ``panel.scene``.

    Args:
        images: before the normalisation.
        answers: from a network's name to the class that it gives each pixel.
        names: of the scenes.
    """
    scene = choice("Scene", [(name, index) for index, name in enumerate(names)])
    legend = legend_html(dict(zip(classes, CLASS_COLOURS, strict=False))) + legend_html(ERROR_COLOURS)

    def draw() -> str:
        image, mask = images[scene.value], masks[scene.value]
        known = int((mask != PixelCrossEntropy.IGNORE).sum())
        above = [picture_html(overlaid(image, mask), f"the mask: {names[scene.value]}")]
        below = [picture_html(image.movedim(0, -1), "the image")]
        words = []
        for name, answer in answers.items():
            errors = error_kinds(answer[scene.value], mask)
            above.append(picture_html(painted(answer[scene.value]), name))
            count = int(errors.count_nonzero())
            below.append(picture_html(errors_over(image, errors), f"{name}: {count} pixels wrong"))
            words.append(f"{name} {count / max(known, 1):.1%}")
        said = f"Share of the pixels that are wrong: {', '.join(words)}."
        return f"{side_by_side(above)}{side_by_side(below)}{legend}<p>{said}</p>"

    panel = Panel([scene], draw, "errors")
    panel.scene = scene
    return panel
