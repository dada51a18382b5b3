"""Chapter 05: what MGD's generator makes of a masked map, and the widget that drags the mask."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import ipywidgets as widgets
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from kdlab.classroom.losses import mean_square
from kdlab.classroom.panel import WIDE, Panel, choice, slider
from kdlab.classroom.pictures import coloured, picture_html, side_by_side
from kdlab.losses import MGDLoss
from kdlab.recipes.layers import spread

ALL = "all: their mean square"
CHANNELS = 8  # those that vary most are offered


@dataclass(frozen=True)
class Generated:
    """What is left of one image's map under a mask, and what the generator makes of it.

    Args:
        left: the student's aligned map times the mask.
        kept: 1 where it is kept: (1, h, w), or (c, 1, 1) for a mask of channels.
        made: the generated map.
        error: its mean squared error; 1 is the mean variance of the teacher's channels, so that 1 is what a generator
            reaches that never looks.
        masked_error, kept_error: over the masked and over the kept positions alone; NaN where there are none, as under
            a mask of channels.
    """

    left: Float[Tensor, "c h w"]
    kept: Float[Tensor, "_ _ _"]
    made: Float[Tensor, "c h w"]
    error: float
    masked_error: float
    kept_error: float


def nested_mask(loss: MGDLoss, height: int, width: int, seed: int) -> Float[Tensor, "_ _ _"]:
    """1 where the map is kept. With one seed, what a ratio masks is masked at every higher ratio too."""
    shape = (1, height, width) if loss.mask == "spatial" else (loss.teacher_channels, 1, 1)
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (drawn < 1 - loss.mask_ratio).float()


@torch.no_grad()
def generate(
    loss: MGDLoss, student: Float[Tensor, "c_s h w"], teacher: Float[Tensor, "c h w"], variance: float, seed: int
) -> Generated:
    """Mask one image's map with the loss's own ratio, and let its generator make the teacher's from the rest.

    Args:
        variance: the mean variance of the teacher's channels, over many images.
        seed: of the mask.
    """
    aligned = loss.align(student[None])[0]
    _, height, width = aligned.shape
    kept = nested_mask(loss, height, width, seed)
    made = loss.generator((aligned * kept)[None])[0]
    apart = (made - teacher).square().mean(0) / variance
    where = kept[0].bool() if loss.mask == "spatial" else torch.zeros_like(apart, dtype=torch.bool)
    masked = ~where if loss.mask == "spatial" else where
    return Generated(
        aligned * kept, kept, made, apart.mean().item(), apart[masked].mean().item(), apart[where].mean().item()
    )


def left_activity(seen: Generated) -> Float[Tensor, "h w"]:
    """How active what is left is at each position; NaN where the position is masked."""
    left = mean_square(seen.left)
    return left if len(seen.kept) > 1 else left.where(seen.kept[0].bool(), torch.nan)


def mask_explorer(
    images: UInt8[Tensor, "n 3 s s"],
    student: Float[Tensor, "n c_s h w"],
    teacher: Float[Tensor, "n c h w"],
    losses: Mapping[str, MGDLoss],
) -> Panel:
    """Pick a scene, drag the mask ratio: what is left of the student's map, what is made of it, and the teacher's.

    The panel has the controls as ``panel.scene``, ``panel.mask``, ``panel.channel``, ``panel.ratio`` and
    ``panel.another``, a button that draws another mask.

    Args:
        student, teacher: the maps of these images.
        losses: by the kind of mask, their generators trained. Their mask_ratio is set by the slider.
    """
    scene = choice("Scene", list(range(len(images))))
    mask = choice("Mask", list(losses))
    varying = teacher.transpose(0, 1).flatten(1).var(dim=1).topk(min(CHANNELS, teacher.shape[1])).indices
    channel = choice("Teacher's channel", [(ALL, ALL), *((str(c), c) for c in sorted(varying.tolist()))])
    ratio = slider("Mask ratio", 0.5, 0.0, 1.0, 0.05)
    another = widgets.Button(description="Draw another mask", layout=WIDE)
    variance = spread(teacher)
    pictures = [picture_html(image.movedim(0, -1), f"scene {index}") for index, image in enumerate(images)]
    seed = 0

    def draw() -> str:
        index, c = scene.value, channel.value
        loss = losses[mask.value]
        loss.mask_ratio = ratio.value
        seen = generate(loss, student[index], teacher[index], variance, seed)
        left, whole = left_activity(seen), mean_square(loss.align(student[index])).max().item()
        made, its = (mean_square(maps) if c == ALL else maps[c] for maps in (seen.made, teacher[index]))
        limits = its.min().item(), its.max().item()
        name = "all channels" if c == ALL else f"channel {c}"
        shown = [
            pictures[index],
            picture_html(coloured(left, (0.0, whole)), "what is left of the student's map"),
            picture_html(coloured(made, limits), f"generated, {name}"),
            picture_html(coloured(its, limits), f"the teacher's, {name}"),
        ]
        return f"{side_by_side(shown, wrap=True)}<p>{_words(loss, seen)}</p>"

    panel = Panel([scene, mask, channel, ratio, another], draw, "mask")

    def draw_another(_: widgets.Button) -> None:
        nonlocal seed
        seed += 1
        panel.redraw()

    another.on_click(draw_another)
    panel.scene, panel.mask, panel.channel, panel.ratio, panel.another = scene, mask, channel, ratio, another
    return panel


def _words(loss: MGDLoss, seen: Generated) -> str:
    hidden, total = int((seen.kept == 0).sum()), seen.kept.numel()
    words = f"mask ratio {loss.mask_ratio:.2f}: {hidden} of {total} "
    if loss.mask == "channel":
        return words + f"channels masked. Error of the generated map: {seen.error:.3f} of the teacher's variance."
    parts = {"masked": seen.masked_error, "kept": seen.kept_error}
    there = ", ".join(f"{part:.3f} at {name} positions" for name, part in parts.items() if not math.isnan(part))
    return words + f"positions masked. Error of the generated map: {seen.error:.3f} of the teacher's variance; {there}."
