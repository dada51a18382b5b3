"""The widget of chapter 02: choose two layers and a connector, and see whether they meet."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdlab.classroom.panel import Panel, choice
from kdlab.classroom.pictures import coloured, picture_html
from kdlab.distill import ConvConnector, Resize

Shape = tuple[int, int, int]  # channels, height, width

NONE, CHANNELS, NEIGHBOURS, SIZE = "none", "1x1 convolution", "3x3 convolution", "resize"
BOTH = "1x1 convolution, then resize"
# From the shapes of student and teacher to the connector between them.
CONNECTORS: dict[str, Callable[[Shape, Shape], nn.Module]] = {
    NONE: lambda student, teacher: nn.Identity(),
    CHANNELS: lambda student, teacher: ConvConnector(student[0], teacher[0]),
    NEIGHBOURS: lambda student, teacher: ConvConnector(student[0], teacher[0], kernel_size=3),
    SIZE: lambda student, teacher: Resize(teacher[1:]),
    BOTH: lambda student, teacher: nn.Sequential(ConvConnector(student[0], teacher[0]), Resize(teacher[1:])),
}


@dataclass(frozen=True)
class Meeting:
    """What a connector makes of the student's map: its shape, what there is to learn, and what still differs."""

    shape: Shape
    parameters: int
    differs: tuple[str, ...]  # of "channels" and "size"; empty where the maps meet


@cache
def meet(student: Shape, teacher: Shape, connector: str) -> Meeting:
    """Put a connector of :data:`CONNECTORS` behind the student's map and compare with the teacher's."""
    with torch.device("meta"):  # shapes and counts without a number being drawn
        built = CONNECTORS[connector](student, teacher)
        _, channels, height, width = built(torch.empty(1, *student)).shape
    differs = ("channels",) * (channels != teacher[0]) + ("size",) * ((height, width) != teacher[1:])
    return Meeting((channels, height, width), sum(p.numel() for p in built.parameters()), differs)


def smallest(student: Shape, teacher: Shape) -> str:
    """The connector that makes these shapes meet with the least to learn."""
    apart = meet(student, teacher, NONE).differs
    return {(): NONE, ("channels",): CHANNELS, ("size",): SIZE, ("channels", "size"): BOTH}[apart]


def mean_absolute(maps: Float[Tensor, "c h w"]) -> Float[Tensor, "h w"]:
    """How active each position is: the mean absolute value over the channels."""
    return maps.abs().mean(dim=0)


def taps_explorer(
    images: Float[Tensor, "n 3 h w"],
    names: list[str],
    student: Mapping[str, Float[Tensor, "n _ _ _"]],
    teacher: Mapping[str, Float[Tensor, "n _ _ _"]],
) -> Panel:
    """Pick a layer of each network, a connector and an image: the shapes, whether they meet, and both activity maps.

    The panel has the controls as ``panel.student``, ``panel.teacher``, ``panel.connector`` and ``panel.image``.

    Args:
        names: of the images.
        student, teacher: the tapped maps of these images, by layer.
    """
    mine, its = choice("Student layer", list(student)), choice("Teacher layer", list(teacher))
    connector = choice("Connector", list(CONNECTORS))
    image = choice("Image", [(name, index) for index, name in enumerate(names)])

    @cache
    def picture(who: str, layer: str, index: int) -> str:
        maps = (student if who == "student" else teacher)[layer][index]
        return picture_html(coloured(mean_absolute(maps)), f"{who}, {layer}, {_times(tuple(maps.shape))}")

    def draw() -> str:
        index = image.value
        pictures = [
            picture_html(coloured(images[index].mean(dim=0), colours="gray"), f"the image, {names[index]}"),
            picture("student", mine.value, index),
            picture("teacher", its.value, index),
        ]
        row = f'<div style="display: flex; gap: 16px">{"".join(pictures)}</div>'
        shapes = _shape(student[mine.value]), _shape(teacher[its.value])
        return f"{row}<p>{_sentence(*shapes, connector.value)}</p>"

    panel = Panel([mine, its, connector, image], draw, "taps")
    panel.student, panel.teacher, panel.connector, panel.image = mine, its, connector, image
    return panel


def _sentence(student: Shape, teacher: Shape, connector: str) -> str:
    made = meet(student, teacher, connector)
    words = f"student {_times(student)} → {connector}, {made.parameters:,} parameters → {_times(made.shape)}; "
    words += f"teacher {_times(teacher)}. "
    best = smallest(student, teacher)
    least = f"{best}, {meet(student, teacher, best).parameters:,} parameters"
    if made.differs:
        return words + f"<b>They do not meet</b>: {' and '.join(made.differs)} differ. Needed at least: {least}."
    return words + "<b>They meet</b>" + ("." if connector == best else f"; enough would be: {least}.")


def _shape(maps: Float[Tensor, "n c h w"]) -> Shape:
    _, channels, height, width = maps.shape
    return channels, height, width


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
