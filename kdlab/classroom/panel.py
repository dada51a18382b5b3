"""The frame of every widget: labelled controls above, a picture and a sentence below."""

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

WIDE = widgets.Layout(width="430px")
LABELLED = {"description_width": "150px"}  # room for a whole label


class Panel(widgets.VBox):
    """Controls and a view, which is redrawn by ``draw() -> HTML`` whenever a control changes.

    The view is an HTML widget that is replaced as a whole: nothing is ever printed from a callback.
    """

    def __init__(self, controls: Sequence[widgets.Widget], draw: Callable[[], str], name: str) -> None:
        self.draw = draw
        self.view = widgets.HTML()
        self.view.add_class(f"kdlab-{name}")
        super().__init__([*controls, self.view])
        for control in controls:
            if isinstance(control, widgets.ValueWidget):
                control.observe(self.redraw, names="value")
        self.redraw()

    def redraw(self, change: Any = None) -> None:
        self.view.value = self.draw()

    def __repr__(self) -> str:
        return "A widget: run the notebook to drag it. The figure below shows the same without a kernel."


def slider(label: str, value: float, low: float, high: float, step: float) -> widgets.FloatSlider:
    """A slider with its label beside it, that reports while it is dragged."""
    return widgets.FloatSlider(
        value=value, min=low, max=high, step=step, description=label, style=LABELLED, layout=WIDE, readout_format=".2f"
    )


def choice(label: str, options: Sequence[Any]) -> widgets.Dropdown:
    """A drop-down list with its label beside it."""
    return widgets.Dropdown(options=options, description=label, style=LABELLED, layout=WIDE)
