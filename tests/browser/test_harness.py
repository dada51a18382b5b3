"""The harness itself: it moves widgets, and it does not miss an exception."""

from pathlib import Path

import nbformat
import psutil
import pytest
from lab import Lab
from playwright.sync_api import Browser

WIDGETS = """
import ipywidgets as widgets

level = widgets.IntSlider(value=2, min=0, max=10, description="Level")
image = widgets.Image(value=bytes([2]), format="png")
image.add_class("level-image")
share = widgets.FloatSlider(value=0.5, min=0.0, max=1.0, step=0.1)
colour = widgets.Dropdown(options=["red", "green", "blue"], description="Colour")
reset = widgets.Button(description="Reset")
view = widgets.HTML()
view.add_class("view")

def draw(change=None):
    view.value = f"<b>{level.value}</b> of {colour.value} at {share.value:.1f}"
    image.value = bytes([level.value])

def on_reset(button):
    level.value = 0

for widget in (level, share, colour):
    widget.observe(draw, "value")
reset.on_click(on_reset)
draw()
widgets.VBox([level, widgets.Label("Share"), share, colour, reset, view, image])
"""

RAISING_CALLBACKS = """
import threading
import ipywidgets as widgets

def divide(change):
    1 / 0

def start_thread(button):
    threading.Thread(target=lambda: {}["missing"]).start()

slider = widgets.IntSlider(max=10, description="Divide")
slider.observe(divide, "value")
thread = widgets.Button(description="Start")
thread.on_click(start_thread)
widgets.VBox([slider, thread])
"""


def save(folder: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    path = folder / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_widgets_move_and_what_changed_is_read(lab: Lab, tmp_path: Path) -> None:
    path = save(tmp_path, WIDGETS)
    untouched = path.read_bytes()
    with lab.open(path) as notebook:
        notebook.run_all()

        def view() -> str:
            return notebook.text_of(".view")

        assert view() == "2 of red at 0.5"
        notebook.slider("Level").drag_to(0.8)
        assert notebook.wait_for_change(view, "2 of red at 0.5") == "8 of red at 0.5"
        assert notebook.slider("Level").readout() == "8"
        assert notebook.image_of(".level-image") == bytes([8])
        notebook.slider("Level").drag_to(0.0)
        assert notebook.wait_for_change(view, "8 of red at 0.5") == "0 of red at 0.5"
        notebook.slider("Level").press("ArrowRight", times=3)
        assert notebook.wait_for_change(view, "0 of red at 0.5") == "3 of red at 0.5"
        notebook.slider("Share").drag_to(1.0)
        assert notebook.wait_for_change(view, "3 of red at 0.5") == "3 of red at 1.0"
        notebook.dropdown("Colour").choose("blue")
        assert notebook.wait_for_change(view, "3 of red at 1.0") == "3 of blue at 1.0"
        assert notebook.dropdown("Colour").chosen() == "blue"
        notebook.button("Reset").click()
        assert notebook.wait_for_change(view, "3 of blue at 1.0") == "0 of blue at 1.0"
        assert "<b>0</b>" in notebook.within(".view").html_of(".widget-html-content")
        assert notebook.errors() == []

        with pytest.raises(AssertionError, match="in vain until the reading changes from '0 of blue at 1.0'"):
            notebook.wait_for_change(view, "0 of blue at 1.0", timeout=0.5)
    assert path.read_bytes() == untouched


def test_an_exception_in_a_callback_or_a_thread_is_not_missed(lab: Lab, tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="ZeroDivisionError"),
        lab.open(save(tmp_path, RAISING_CALLBACKS)) as notebook,
    ):
        notebook.run_all()
        assert notebook.errors() == []
        notebook.button("Start").click()
        with pytest.raises(AssertionError, match="KeyError: 'missing'"):
            notebook.wait_until(lambda: False, "the thread has raised")
        notebook.slider("Divide").press("ArrowRight")


def test_a_cell_that_raises_fails_run_all_unless_it_is_meant_to(lab: Lab, tmp_path: Path) -> None:
    path = save(tmp_path, "print('first')", "int('meant')", "int('a word')", "print('never reached')")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].metadata.tags = ["raises-exception"]
    nbformat.write(notebook, path)
    with (
        pytest.raises(AssertionError, match=r"cell 3 raised:(?s:.)*ValueError.*'a word'") as failure,
        lab.open(path) as opened,
    ):
        opened.run_all()
    assert "'meant'" not in str(failure.value)


def test_a_failing_test_leaves_no_process_behind(browser: Browser, tmp_path: Path) -> None:
    path = save(tmp_path, "import os; print(os.getpid())")
    folder = tmp_path / "lab"
    folder.mkdir()
    with pytest.raises(RuntimeError, match="on purpose"), Lab(folder, browser) as lab:
        notebook = lab.open(path).__enter__()
        notebook.run_all()
        kernel = psutil.Process(int(notebook.text_of(".jp-OutputArea-output")))
        server = kernel.parent()
        raise RuntimeError("on purpose")
    _, alive = psutil.wait_procs([kernel, server], timeout=10)
    assert alive == []
