"""The harness itself: it moves widgets, and it does not miss an exception."""

from pathlib import Path

import nbformat
import psutil
import pytest
from playwright.sync_api import Browser

from .lab import Lab

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

RAISING_CALLBACK = """
import ipywidgets as widgets

def divide(change):
    1 / 0

slider = widgets.IntSlider(max=10, description="Divide")
slider.observe(divide, "value")
slider
"""
BROKEN_WIDGET = """
import ipywidgets
import traitlets

class Broken(ipywidgets.DOMWidget):
    _model_module = traitlets.Unicode("module that is not installed").tag(sync=True)

Broken()
"""
RAISING_THREAD = """
import threading

thread = threading.Thread(target=lambda: {}["missing"])
thread.start()
thread.join()
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

        with pytest.raises(AssertionError, match=r"in vain until the reading changes from '0 of blue at 1.0'"):
            notebook.wait_for_change(view, "0 of blue at 1.0", timeout=0.5)
    assert path.read_bytes() == untouched


def test_a_callback_that_raises_fails_the_next_wait_and_the_whole_block(lab: Lab, tmp_path: Path) -> None:
    def use_slider() -> None:
        with lab.open(save(tmp_path, RAISING_CALLBACK)) as notebook:
            notebook.run_all()
            assert notebook.errors() == []
            notebook.slider("Divide").drag_to(0.5)
            with pytest.raises(AssertionError, match=r"a widget callback raised:(?s:.)*ZeroDivisionError"):
                notebook.wait_for_change(notebook.slider("Divide").readout, "0")

    with pytest.raises(AssertionError, match=r"a widget callback raised:(?s:.)*ZeroDivisionError"):
        use_slider()


def test_run_all_fails_with_what_cells_threads_and_widgets_raised(lab: Lab, tmp_path: Path) -> None:
    path = save(tmp_path, "int('meant')", BROKEN_WIDGET, RAISING_THREAD, "int('not meant')", "int('never reached')")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].metadata.tags = ["raises-exception"]
    nbformat.write(notebook, path)

    def run() -> None:
        with lab.open(path) as notebook:
            notebook.run_all()

    with pytest.raises(AssertionError) as failure:
        run()
    message = str(failure.value)
    assert "cell 4 raised" in message
    assert "ValueError: invalid literal for int() with base 10: 'not meant'" in message
    assert "KeyError: 'missing'" in message
    assert "No version of module module that is not installed is registered" in message
    assert "cell 1" not in message
    assert "never reached" not in message


def test_a_failing_test_leaves_no_process_behind(browser: Browser, tmp_path: Path) -> None:
    lab_folder, notebook_folder = tmp_path / "lab", tmp_path / "notebook"
    lab_folder.mkdir()
    notebook_folder.mkdir()
    processes = []

    def fail() -> None:
        with Lab(lab_folder, browser) as lab:
            notebook = lab.open(save(notebook_folder, "import os; print(os.getpid())")).__enter__()
            notebook.run_all()
            kernel = psutil.Process(int(notebook.text_of(".jp-OutputArea-output")))
            processes.extend([kernel, kernel.parent()])
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert len(processes) == 2
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
