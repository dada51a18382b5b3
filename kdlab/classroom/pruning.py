"""The widget of chapter 06: which channels stay, what that saves, and what accuracy the measured points promise."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from kdlab.classroom.panel import Panel, slider
from kdlab.classroom.svg import bar_chart, line_chart
from kdlab.errors import InputError
from kdlab.pruning import BeforeAfter, PruningPlan

Points = Mapping[float, float]  # from a fraction of the channels to the accuracy that was measured there


def between(points: Points, keep: float) -> float | None:
    """On the straight line between the two measured points around it; None where there is one on one side only."""
    known = sorted(points)
    place = bisect_left(known, keep)
    if place < len(known) and known[place] == keep:
        return points[keep]
    if place in (0, len(known)):
        return None
    low, high = known[place - 1 : place + 1]
    return points[low] + (points[high] - points[low]) * (keep - low) / (high - low)


@dataclass(frozen=True)
class Kept:
    """What a plan leaves.

    Args:
        keep: the fraction of the prunable channels that was to stay; the plan meets it to the nearest channel.
        channels: the output channels of all convolutions of a block, by the block's number.
        parameters: of the whole detector.
        gflops: for one image; a multiplication with its addition is two operations.
        promised: accuracy by the name of what was measured; None beyond the measured points.
    """

    keep: float
    channels: dict[str, BeforeAfter]
    parameters: BeforeAfter
    gflops: tuple[float, float]
    promised: dict[str, float | None]


def look(keep: float, plan: PruningPlan, measured: Mapping[str, Points]) -> Kept:
    """What a plan for a YOLO detector leaves, and what the measured points say of a detector of that keep."""
    table = plan.table()
    blocks = table["layer"].str.split(".").str[1]
    sums = table.groupby(blocks, sort=False)[["channels", "kept"]].sum()
    channels = {str(block): BeforeAfter(int(row["channels"]), int(row["kept"])) for block, row in sums.iterrows()}
    before, after = (2e-9 * macs for macs in plan.macs)
    promised = {name: between(points, keep) for name, points in measured.items()}
    return Kept(keep, channels, plan.parameters, (before, after), promised)


def keep_explorer(plans: Mapping[float, PruningPlan], measured: Mapping[str, Points]) -> Panel:
    """Drag keep: the channels of each block, parameters, GFLOPs, and the accuracy that the measured points promise.

    The panel has the control as ``panel.keep``.

    Args:
        plans: by the fraction that they keep, evenly spaced.
        measured: mAP50-95 by keep, under a name such as "fine-tuned".

    Raises:
        InputError: fewer than two plans.
    """
    if len(plans) < 2:
        raise InputError(f"keep_explorer got {len(plans)} plans; wanted: at least two, to go from one to the other.")
    keeps = sorted(plans)
    seen = {keep: look(keep, plans[keep], measured) for keep in keeps}
    control = slider("Keep", keeps[-1], keeps[0], keeps[-1], (keeps[-1] - keeps[0]) / (len(keeps) - 1))
    highest = max(max(before for before, _ in kept.channels.values()) for kept in seen.values())
    top = max((value for points in measured.values() for value in points.values()), default=1.0) or 1.0

    def draw() -> str:
        kept = seen[min(keeps, key=lambda keep: abs(keep - control.value))]
        counts = {"dense": [b for b, _ in kept.channels.values()], "kept": [a for _, a in kept.channels.values()]}
        bars = bar_chart(
            counts, list(kept.channels), f"Channels of each block, dense and with {kept.keep:.0%} kept", (0.0, highest),
            ylabel="channels",
        )  # fmt: skip
        lines = {name: sorted(points.items()) for name, points in measured.items()}
        here = [(kept.keep, value) for value in kept.promised.values() if value is not None]
        lines |= {"here": here}
        chart = line_chart(
            lines, "Measured mAP50-95 by keep, and where the slider is", 1.0, (0.0, top), xlabel="keep",
            ylabel="mAP50-95",
        )  # fmt: skip
        return f"<p>Channels by block:</p>{bars}<p>mAP50-95 by keep:</p>{chart}<p>{_words(kept)}</p>"

    panel = Panel([control], draw, "keep")
    panel.keep = control
    return panel


def _words(kept: Kept) -> str:
    parameters, (gflops_before, gflops_after) = kept.parameters, kept.gflops
    promised = (
        f"{name} {'beyond what was measured' if value is None else f'{value:.3f}'}"
        for name, value in kept.promised.items()
    )
    return (
        f"keep {kept.keep:.2f}: {parameters.after:,} of {parameters.before:,} parameters "
        f"({parameters.after / parameters.before:.0%}), {gflops_after:.3f} of {gflops_before:.3f} GFLOPs "
        f"({gflops_after / gflops_before:.0%}). mAP50-95 on straight lines between what was measured: "
        f"{', '.join(promised)}"
    )
