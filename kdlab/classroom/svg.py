"""Small charts as SVG text: what a widget draws while a slider moves, in well under a millisecond."""

import html
from collections.abc import Iterable, Mapping, Sequence

from kdlab.classroom.figures import PALETTE

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 190, 60, 36, 26


def bar_chart(
    series: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    alt: str,
    limits: tuple[float, float] = (0.0, 1.0),
    *,
    ylabel: str,
) -> str:
    """Grouped bars, one group a label and one colour a series, between two limits; bars beyond them are cut there."""
    low, high = limits
    group = (WIDTH - LEFT) / len(labels)
    bar = group * 0.8 / len(series)
    zero = _y(0.0, low, high)
    marks = []
    for index, (name, values) in enumerate(series.items()):
        for place, value in enumerate(values):
            top = _y(min(max(value, low), high), low, high)
            left = LEFT + place * group + group * 0.1 + index * bar
            marks.append(
                f'<rect x="{left:.1f}" y="{min(top, zero):.1f}" width="{bar:.1f}" height="{abs(zero - top):.1f}" '
                f'fill="{PALETTE[index]}"><title>{html.escape(name)}, {labels[place]}: {value:.3f}</title></rect>'
            )
    for place, label in enumerate(labels):
        marks.append(_text(LEFT + (place + 0.5) * group, HEIGHT - BOTTOM + 16, label, "middle"))
    return _chart(marks, series, alt, low, high, zero, ylabel)


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    alt: str,
    xlimit: float,
    limits: tuple[float, float] = (0.0, 1.0),
    *,
    xlabel: str,
    ylabel: str,
) -> str:
    """Lines through (x, y) points, x from 0 to ``xlimit``, y between two limits."""
    low, high = limits
    marks = []
    for index, points in enumerate(series.values()):
        places = [(LEFT + x / xlimit * (WIDTH - LEFT - 8), _y(min(max(y, low), high), low, high)) for x, y in points]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        marks.append(f'<polyline points="{joined}" fill="none" stroke="{PALETTE[index]}" stroke-width="2"/>')
        marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{PALETTE[index]}"/>' for x, y in places]
    marks += [
        _text(LEFT, HEIGHT - BOTTOM + 16, "0", "middle"),
        _text(WIDTH - 8, HEIGHT - BOTTOM + 16, f"{xlimit:g}", "end"),
        _text((LEFT + WIDTH) / 2, HEIGHT - BOTTOM + 30, xlabel, "middle"),
    ]
    return _chart(marks, series, alt, low, high, _y(low, low, high), ylabel)


def frame(width: int, height: int, alt: str, marks: Iterable[str]) -> str:
    """Marks as one picture of this size, narrower where the view is, and one sentence for those who cannot see it."""
    return (
        f'<svg role="img" aria-label="{html.escape(alt)}" viewBox="0 0 {width} {height}" width="{width}" '
        f'style="max-width: 100%" font-size="12" fill="currentColor">{"".join(marks)}</svg>'
    )


def _chart(
    marks: list[str], names: Mapping[str, object], alt: str, low: float, high: float, zero: float, ylabel: str
) -> str:
    axis = [f'<line x1="{LEFT}" y1="{zero:.1f}" x2="{WIDTH}" y2="{zero:.1f}" stroke="currentColor"/>']
    axis += [
        _text(LEFT - 6, _y(value, low, high) + 4, f"{value:.3g}", "end") for value in (low, (low + high) / 2, high)
    ]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    axis.append(f'<g transform="rotate(-90 12 {middle:.0f})">{_text(12, middle, ylabel, "middle")}</g>')
    legend = []
    left = LEFT
    for index, name in enumerate(names):
        legend.append(f'<rect x="{left}" y="6" width="10" height="10" fill="{PALETTE[index]}"/>')
        legend.append(_text(left + 14, 15, name, "start"))
        left += 30 + 7 * len(name)
    return frame(WIDTH, HEIGHT, alt, axis + marks + legend)


def _y(value: float, low: float, high: float) -> float:
    return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
