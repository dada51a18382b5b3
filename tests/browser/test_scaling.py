"""The widget of chapter 11, moved by hand in a browser."""

import re

import pytest

from .lab import panel_of

CHAPTER = "11_scaling_up"
HOURS = ".kdlab-hours"
RUN = "restoration, stage 1"


@pytest.fixture
def panel(chapter):
    """The widget with one process, at the middle of its other sliders: 1 TFLOP/s and a link of about 3 GB/s."""
    panel = panel_of(chapter, HOURS)
    panel.slider("Achieved TFLOP/s").drag_to(0.5)
    panel.slider("Link, GB/s").drag_to(0.5)
    panel.slider("Processes").press("End")
    chapter.wait_until(lambda: "64 processes," in panel.text_of(HOURS), "there are 64 processes")
    panel.slider("Processes").press("Home")
    chapter.wait_until(lambda: "1 process," in panel.text_of(HOURS), "there is one process")
    return panel


def after(chapter, panel, change):
    """The cells of the first run's row, after the change, which must have given another view."""
    before = panel.html_of(HOURS)
    change()
    chapter.wait_for_change(lambda: panel.html_of(HOURS), before)
    return row(panel)


def row(panel):
    """Work in PFLOP, hours of computing, of comparing and together, and the speed-up of the first run."""
    cells = re.search(rf"{RUN}((?:\s+[\d.,]+){{5}})", panel.text_of(HOURS))
    assert cells
    return [float(cell.replace(",", "")) for cell in cells[1].split()]


def test_a_faster_machine_needs_fewer_hours_for_the_same_work(chapter, panel):
    work, computing, comparing, together, speed_up = row(panel)
    assert (comparing, speed_up) == (0, 1)
    assert computing == together
    faster = after(chapter, panel, lambda: panel.slider("Achieved TFLOP/s").drag_to(0.8))
    assert faster[0] == work
    assert faster[3] < together / 10


def test_more_processes_are_faster_but_never_by_more_than_their_number(chapter, panel):
    alone = row(panel)
    many = after(chapter, panel, lambda: panel.slider("Processes").press("End"))
    assert many[3] < alone[3]
    assert many[2] > 0
    assert 1 < many[4] <= 64


def test_a_slower_link_takes_longer_to_compare(chapter, panel):
    panel.slider("Achieved TFLOP/s").drag_to(0.8)
    quick = after(chapter, panel, lambda: panel.slider("Processes").press("End"))
    slow = after(chapter, panel, lambda: panel.slider("Link, GB/s").press("Home"))
    assert slow[1] == quick[1]
    assert slow[2] > quick[2]
    assert slow[4] < quick[4]


def test_each_key_is_one_process(chapter, panel):
    after(chapter, panel, lambda: panel.slider("Processes").press("ArrowRight"))
    assert "2 processes," in panel.text_of(HOURS)
