"""Chapter 03: pictures of feature maps, and its two widgets: where a loss pulls the student, and RKD's geometry."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kdlab.classroom.figures import PALETTE, figure, show
from kdlab.classroom.panel import Panel, choice, slider
from kdlab.classroom.pictures import side_by_side
from kdlab.classroom.svg import bar_chart
from kdlab.losses import ATLoss, CWDLoss, DISTLoss, DKDLoss, HintLoss, KDLoss, PKTLoss, RKDLoss, SPLoss


class OnVectors(nn.Module):
    """A loss on vectors, between maps that are each flattened to one."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Float[Tensor, "n *s"], teacher: Float[Tensor, "n *t"]) -> Float[Tensor, ""]:
        return self.loss(student.flatten(1), teacher.flatten(1))


ON_LOGITS: dict[str, nn.Module] = {"KD": KDLoss(), "DKD": DKDLoss(), "DIST": DISTLoss()}
ELEMENT_BY_ELEMENT: dict[str, nn.Module] = {"FitNets": HintLoss(), "CWD": CWDLoss(temperature=4.0)}
RELATIONS: dict[str, nn.Module] = {"SP": SPLoss(), "RKD": OnVectors(RKDLoss()), "PKT": OnVectors(PKTLoss())}
ON_MAPS: dict[str, nn.Module] = {**ELEMENT_BY_ELEMENT, "AT": ATLoss(), **RELATIONS}
Layers = Mapping[str, tuple[Float[Tensor, "n _ _ _"], Float[Tensor, "n _ _ _"]]]


def show_maps(
    maps: Mapping[str, Float[Tensor, "_ _"]],
    alt: str,
    *,
    signed: Sequence[str] = (),
    same_scale: Sequence[str] = (),
    width: float = 1.9,
) -> None:
    """Small pictures side by side, each with its title, and one sentence for those who cannot see them.

    Args:
        maps: from title to numbers, dark to bright from the least to the greatest.
        signed: titles of those that are drawn around 0: blue below, red above.
        same_scale: titles of those that are to be compared: a colour is the same number in all of them.
        width: of one picture, in inches.
    """
    fig, axes = figure(1, len(maps), width=width, height=width + 0.25)
    for ax, (title, values) in zip(axes, maps.items(), strict=True):
        scaled_by = [maps[other] for other in same_scale] if title in same_scale else [values]
        least, greatest = min(x.min().item() for x in scaled_by), max(x.max().item() for x in scaled_by)
        colours = "viridis"
        if title in signed:
            colours, greatest = "RdBu_r", max(-least, greatest)
            least = -greatest
        ax.imshow(values.detach().numpy(), colours, aspect="auto", interpolation="nearest", vmin=least, vmax=greatest)
        ax.set_title(title, fontsize=9)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    show(fig, alt)


def mosaic(maps: Float[Tensor, "c h w"], columns: int) -> Float[Tensor, "_ _"]:
    """The channels of one image as tiles of one picture, row by row; an unfinished last row is left out."""
    c, h, w = maps.shape
    rows = c // columns
    return maps[: rows * columns].view(rows, columns, h, w).transpose(1, 2).reshape(rows * h, columns * w)


def fitted_connector(student: Float[Tensor, "n c_s h w"], teacher: Float[Tensor, "n c_t h w"]) -> nn.Conv2d:
    """The 1x1 convolution that brings the student's maps nearest to the teacher's, by least squares; it is frozen.

    What a connector learns in training, at once: so that what is left between the two maps is the student's.
    """
    inputs = torch.cat([student.movedim(1, -1).flatten(0, -2), torch.ones(student[:, 0].numel(), 1)], dim=1)
    gram = inputs.mT @ inputs
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))  # channels that are never active have no column
    solution = torch.linalg.solve(gram + ridge, inputs.mT @ teacher.movedim(1, -1).flatten(0, -2))
    connector = nn.Conv2d(student.shape[1], teacher.shape[1], 1).requires_grad_(False)
    connector.weight.copy_(solution[:-1].mT[:, :, None, None])
    connector.bias.copy_(solution[-1])  # type: ignore[union-attr]  # made with a bias above
    return connector


@dataclass(frozen=True)
class Pulled:
    """What a loss does to the student's tensor of one image: its value for the batch, and minus its gradient.

    ``toward`` is times the size of the batch, so that it is one image's own.
    """

    loss: float
    toward: Tensor


def pulled(
    loss: nn.Module,
    student: Float[Tensor, "n *s"],
    teacher: Float[Tensor, "n *t"],
    index: int,
    *,
    labels: Int[Tensor, " n"] | None = None,
    connector: nn.Module | None = None,
) -> Pulled:
    """A loss on a batch, and where it pulls the student's tensor of the image at ``index``.

    Args:
        labels: the third argument of a loss that has one.
        connector: between the student's tensor and the loss; what is returned is about the tensor before it.
    """
    student = student.detach().requires_grad_()
    reached = student if connector is None else connector(student)
    value = loss(reached, teacher) if labels is None else loss(reached, teacher, labels)
    (gradient,) = torch.autograd.grad(value, student)
    return Pulled(value.item(), -len(student) * gradient[index])


def mean_square(features: Float[Tensor, "c h w"]) -> Float[Tensor, "h w"]:
    """How active each position is: the mean square of its channels."""
    return features.square().mean(0)


def rising(features: Float[Tensor, "c h w"], toward: Float[Tensor, "c h w"]) -> Float[Tensor, "h w"]:
    """How fast each position's activity rises, below 0 falls, where the features move ``toward``."""
    return 2 * (features * toward).mean(0)


def gradient_explorer(
    images: Float[Tensor, "n 3 h w"],
    labels: Int[Tensor, " n"],
    logits: tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]],
    layers: Layers,
    classes: tuple[str, ...],
) -> Panel:
    """Choose a loss, a pair of layers and an image: where does the loss pull the student's tensor?

    The panel has the controls as ``panel.loss``, ``panel.layers`` and ``panel.image``.

    Args:
        logits, layers: (student's, teacher's) of the whole batch, because some losses look at all of it.
    """
    loss = choice("Loss", [*ON_LOGITS, *ON_MAPS])
    pair = choice("Layers", list(layers))
    image = choice("Image", [(f"{index}: a {classes[label]}", index) for index, label in enumerate(labels.tolist())])
    connectors = {name: fitted_connector(*maps) for name, maps in layers.items()}

    def draw() -> str:
        index = image.value
        if loss.value in ON_LOGITS:
            given = labels if loss.value == "DKD" else None
            seen = pulled(ON_LOGITS[loss.value], *logits, index, labels=given)
            limit = seen.toward.abs().max().clamp(min=1e-12).item()
            picture = bar_chart(
                {"logit should rise or fall": (seen.toward / limit).tolist()},
                classes,
                alt=f"Where {loss.value} pulls each logit of the student.",
                limits=(-1.0, 1.0),
                ylabel="of the largest",
            )
            which = "the logits; the layers make no difference"
        else:
            student, teacher = layers[pair.value]
            connector = connectors[pair.value] if loss.value in ELEMENT_BY_ELEMENT else None
            seen = pulled(ON_MAPS[loss.value], student, teacher, index, connector=connector)
            change = rising(student[index], seen.toward)
            picture = (
                heat_map(mean_square(teacher[index]), "teacher's activity")
                + heat_map(mean_square(student[index]), "student's activity")
                + heat_map(change, "should rise (red), fall (blue)", signed=True)
            )
            which = pair.value
        words = (
            f"{loss.value} on {which}: loss of the batch {seen.loss:.4g}; length of this image's gradient "
            f"{seen.toward.norm():.4g}"
        )
        digit = heat_map(images[index, 0], f"image {index}: a {classes[labels[index]]}")
        return f"{side_by_side([digit, picture], wrap=True)}<p>{html.escape(words)}</p>"

    panel = Panel([loss, pair, image], draw, "gradient")
    panel.loss, panel.layers, panel.image = loss, pair, image
    return panel


def heat_map(values: Float[Tensor, "h w"], title: str, signed: bool = False) -> str:
    """A map as SVG text, 132 pixels wide: dark to bright, or ``signed`` from blue over white to red around 0."""
    numbers = values.detach().tolist()
    flat = [value for row in numbers for value in row]
    top, low = max(map(abs, flat)), min(flat)
    span = max(flat) - low
    cell = 132 / len(numbers[0])

    def colour(value: float) -> str:
        if signed:
            pale = round(255 * (1 - abs(value) / top)) if top else 255
            return f"rgb(255,{pale},{pale})" if value > 0 else f"rgb({pale},{pale},255)"
        bright = (value - low) / span if span else 0.0
        return f"rgb({round(40 + 215 * bright)},{round(20 + 215 * bright)},{round(90 + 60 * bright)})"

    cells = [
        f'<rect x="{column * cell:.2f}" y="{18 + row * cell:.2f}" width="{cell + 0.2:.2f}" height="{cell + 0.2:.2f}" '
        f'fill="{colour(value)}"><title>{value:.3g}</title></rect>'
        for row, line in enumerate(numbers)
        for column, value in enumerate(line)
    ]
    height = 18 + cell * len(numbers)
    return (
        f'<svg role="img" aria-label="{html.escape(title)}" viewBox="0 0 190 {height:.0f}" width="190" font-size="12" '
        f'shape-rendering="crispEdges" fill="currentColor"><text x="0" y="12">{html.escape(title)}</text>'
        f"{''.join(cells)}</svg>"
    )


# Four points: A and B are moved. C and D are the teacher's, turned by 90 degrees and 1.5 times as far out; the line
# through them is upright, so that the sliders reach the turned A and B, and their mirror images beyond that line.
TEACHER_POINTS = torch.tensor([(-0.8, 0.6), (0.8, 0.4), (0.4, -0.2), (-0.6, -0.2)])
STUDENT_POINTS = torch.tensor([(0.9, 1.5), (1.5, -0.3), (0.3, 0.6), (0.3, -0.9)])
NAMES = "ABCD"
PAIRS = [(i, j) for i in range(4) for j in range(i + 1, 4)]
CORNERS = [(i, j, k) for j in range(4) for i, k in PAIRS if j not in (i, k)]


@dataclass(frozen=True)
class Geometry:
    """What RKD compares, and the two parts of the loss, unweighted.

    ``distances`` has a number for each of :data:`PAIRS`, over the mean of all; ``angles`` the degrees at each of
    :data:`CORNERS`; each for the teacher and for the student.
    """

    distance_part: float
    angle_part: float
    distances: dict[str, list[float]]
    angles: dict[str, list[float]]


def geometry(student: Float[Tensor, "4 2"], teacher: Float[Tensor, "4 2"]) -> Geometry:
    """The distances and angles of four points, in the teacher's plane and in the student's."""
    distances, angles = {}, {}
    for who, points in (("teacher", teacher), ("student", student)):
        apart = torch.cdist(points, points)
        mean = apart[apart > 0].mean()
        distances[who] = [(apart[i, j] / mean).item() for i, j in PAIRS]
        angles[who] = [_degrees(points[i] - points[j], points[k] - points[j]) for i, j, k in CORNERS]
    return Geometry(
        RKDLoss(1.0, 0.0)(student, teacher).item(), RKDLoss(0.0, 1.0)(student, teacher).item(), distances, angles
    )


def geometry_explorer() -> Panel:
    """Move two of the student's four points: its distances and angles against the teacher's, and RKD's two parts.

    The panel has the controls as ``panel.a`` and ``panel.b``, each (x, y).
    """
    a, b = (
        tuple(slider(f"{name}: {axis}", value, -2.0, 2.0, 0.1) for axis, value in zip("xy", point, strict=True))
        for name, point in zip("AB", STUDENT_POINTS.tolist(), strict=False)
    )

    def draw() -> str:
        moved = torch.tensor([[control.value for control in point] for point in (a, b)])
        student = torch.cat([moved, STUDENT_POINTS[2:]])
        seen = geometry(student, TEACHER_POINTS)
        pairs = [NAMES[i] + NAMES[j] for i, j in PAIRS]
        corners = [NAMES[i] + NAMES[j] + NAMES[k] for i, j, k in CORNERS]
        top = max(2.0, *(max(numbers) for numbers in seen.distances.values()))
        bars = bar_chart(seen.distances, pairs, "Distances over their mean.", (0.0, top), ylabel="over their mean")
        angles = bar_chart(seen.angles, corners, "Angles in degrees.", (0.0, 180.0), ylabel="degrees")
        words = (
            f"distance part {seen.distance_part:.4f} · angle part {seen.angle_part:.4f} · "
            f"loss = 25 × {seen.distance_part:.4f} + 50 × {seen.angle_part:.4f} = "
            f"{25 * seen.distance_part + 50 * seen.angle_part:.3f}"
        )
        planes = side_by_side([_plane(TEACHER_POINTS, "teacher"), _plane(student, "student")], wrap=True)
        return f"{planes}<p>{words}</p><p>Distances over their mean</p>{bars}<p>Angles in degrees</p>{angles}"

    panel = Panel([*a, *b], draw, "geometry")
    panel.a, panel.b = a, b
    return panel


def _degrees(first: Tensor, second: Tensor) -> float:
    """The angle between two vectors; 90, the one with cosine 0, where one of them is no longer than rounding."""
    if min(first.norm(), second.norm()) < 1e-6:
        return 90.0
    return torch.cosine_similarity(first, second, dim=0).clamp(-1, 1).acos().rad2deg().item()


def _plane(points: Float[Tensor, "4 2"], title: str) -> str:
    """The four points and the lines between them as SVG text, both axes from -2.2 to 2.2."""
    places = [((x + 2.2) * 50, 20 + (2.2 - y) * 50) for x, y in points.tolist()]
    lines = [
        f'<line x1="{places[i][0]:.1f}" y1="{places[i][1]:.1f}" x2="{places[j][0]:.1f}" y2="{places[j][1]:.1f}" '
        'stroke="#999999"/>'
        for i, j in PAIRS
    ]
    moved = "AB" if title == "student" else ""
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{PALETTE[name in moved]}">'
        f"<title>{name} ({(x / 50) - 2.2:.1f}, {2.2 - (y - 20) / 50:.1f})</title></circle>"
        f'<text x="{x + 8:.1f}" y="{y - 6:.1f}">{name}</text>'
        for name, (x, y) in zip(NAMES, places, strict=True)
    ]
    return (
        f'<svg role="img" aria-label="The {title}\'s four points." viewBox="0 0 220 240" width="220" font-size="12" '
        f'fill="currentColor"><text x="0" y="12">{title}</text><rect x="0" y="20" width="220" height="220" fill="none" '
        f'stroke="#dddddd"/>{"".join(lines + dots)}</svg>'
    )
