"""The widget of chapter 09: what weighs how much in which stage, over the curves that a run recorded."""

import html
import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from kdlab.classroom.figures import PALETTE
from kdlab.classroom.panel import Panel, slider
from kdlab.classroom.svg import frame
from kdlab.recipes.restoration import TwoStage, losses_by_part

IMAGES, SPACE, BACK, SOFT = "teachers' images", "common space (PFE)", "way back (PFV)", "contrast (SCR)"
CLEAN, HARD = "clean images (L1)", "contrast (HCR)"
NAMES = {"image": IMAGES, "PFE": SPACE, "PFV": BACK, "SCR": SOFT, "task": CLEAN, "HCR": HARD}
PARTS = tuple(NAMES.values())

LABEL, STRIP, VALUE, LANE, GAP = 140, 330, 170, 24, 4


def parts_of(history: pd.DataFrame) -> pd.DataFrame:
    """The losses of a two-stage run by :data:`PARTS`, unweighted, a row an epoch; NaN where one was not computed.

    A part of several teachers is their mean; the common space's is summed over its taps.
    """
    rows = history.to_dict("records")
    parts = pd.DataFrame([losses_by_part(row) for row in rows])  # type: ignore[arg-type]  # a column's name is a str
    parts = parts.rename(columns=NAMES).reindex(columns=PARTS)
    return parts.where(parts > 0)


def weights_at(plan: TwoStage, epochs: int, epoch: int) -> dict[str, float]:
    """What each of :data:`PARTS` weighs in the total, at an epoch counted from 0."""
    collating = epoch < plan.switch(epochs)
    first = {IMAGES: plan.image, SPACE: plan.ckt, BACK: plan.reconstruction if plan.ckt else 0.0, SOFT: plan.scr}
    second = {CLEAN: 1.0, HARD: plan.hcr}
    now, silent = (first, second) if collating else (second, first)
    return now | dict.fromkeys(silent, 0.0)


def total_at(parts: pd.DataFrame, plan: TwoStage, epoch: int) -> float:
    """The loss that is minimised at an epoch counted from 0; NaN where a part of it was not computed."""
    weights = weights_at(plan, len(parts), epoch)
    return sum(weight * float(parts[name].iloc[epoch]) for name, weight in weights.items() if weight)


def stages_svg(parts: pd.DataFrame, rates: Sequence[float], plan: TwoStage, epoch: int) -> str:
    """A lane a part over the epochs: coloured where it weighs something, with its recorded curve, and a mark at one."""
    epochs = len(parts)
    cell, weights = STRIP / epochs, [weights_at(plan, epochs, at) for at in range(epochs)]
    marks = []
    for place, name in enumerate(PARTS):
        colour, values = PALETTE[place], parts[name].tolist()
        for at in range(epochs):
            if weights[at][name]:
                left, top = LABEL + at * cell, _top(place)
                size = f'width="{cell:.1f}" height="{LANE}"'
                marks.append(f'<rect x="{left:.1f}" y="{top}" {size} fill="{colour}" fill-opacity="0.25"/>')
        recorded = "not computed" if math.isnan(values[epoch]) else f"{values[epoch]:.4f}"
        said = f"{weights[epoch][name]:g} × {recorded}" if weights[epoch][name] else "weighs nothing"
        marks += [_curve(values, place, colour), _lane_text(place, name, said)]
    marks += [_curve(rates, len(PARTS), "currentColor"), _lane_text(len(PARTS), "learning rate", f"{rates[epoch]:.2e}")]
    height = _top(len(PARTS) + 1)
    marks.append(_upright(LABEL + plan.switch(epochs) * cell, height, 'stroke-dasharray="4 3"'))
    marks.append(_upright(LABEL + (epoch + 0.5) * cell, height, 'stroke-width="2"'))
    alt = f"What weighs how much in epoch {epoch + 1} of {epochs}, and the recorded losses."
    return frame(LABEL + STRIP + VALUE, height, alt, marks)


def stage_explorer(history: pd.DataFrame, plan: TwoStage) -> Panel:
    """Drag the first stage's share and an epoch: which part weighs what there, over what the run recorded.

    The panel has the controls as ``panel.collation`` and ``panel.epoch``.

    Args:
        history: of the run, as :class:`kdlab.training.Fit` has it.
        plan: of the run.
    """
    parts, rates = parts_of(history), history["lr"].tolist()
    collation = slider("First stage's share", plan.collation, 0.0, 1.0, 0.05)
    epoch = slider("Epoch", 1, 1, len(parts), 1)
    epoch.readout_format = ".0f"

    def draw() -> str:
        at, dragged = int(epoch.value) - 1, replace(plan, collation=collation.value)
        stage = "first stage" if at < dragged.switch(len(parts)) else "second stage"
        total = total_at(parts, dragged, at)
        known = "the total is not known: a part was not computed" if math.isnan(total) else f"the total is {total:.4f}"
        words = f"Epoch {at + 1} of {len(parts)}, {stage}; {known}. The learning rate does not ask for the stage."
        return f"{stages_svg(parts, rates, dragged, at)}<p>{words}</p>"

    panel = Panel([collation, epoch], draw, "stages")
    panel.collation, panel.epoch = collation, epoch
    return panel


def _top(place: int) -> int:
    return place * (LANE + GAP)


def _curve(values: Sequence[float], place: int, colour: str) -> str:
    """The values from 0 to their own highest, in the lane of this place; nothing where there is none."""
    known = [(at, value) for at, value in enumerate(values) if not math.isnan(value)]
    highest = max((value for _, value in known), default=1.0)
    cell = STRIP / len(values)
    points = [(LABEL + (at + 0.5) * cell, _top(place) + LANE - 2 - (LANE - 4) * value / highest) for at, value in known]
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in points)
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'


def _lane_text(place: int, left: str, right: str) -> str:
    y = _top(place) + LANE * 0.7
    return (
        f'<text x="{LABEL - 8}" y="{y:.1f}" text-anchor="end">{html.escape(left)}</text>'
        f'<text x="{LABEL + STRIP + 8}" y="{y:.1f}">{html.escape(right)}</text>'
    )


def _upright(x: float, height: int, style: str) -> str:
    return f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height}" stroke="currentColor" {style}/>'
