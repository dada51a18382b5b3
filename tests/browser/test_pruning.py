"""The widget of chapter 06, moved by hand in a browser."""

import importlib.util

import pytest

from .lab import number, panel_of

CHAPTER = "06_prune_and_distil_yolov8"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ultralytics") is None, reason="needs the extra [yolo]")

VIEW = ".kdlab-keep"


@pytest.fixture
def panel(chapter):
    """The widget where nothing is cut."""
    panel = panel_of(chapter, VIEW)
    panel.slider("Keep").press("End")
    chapter.wait_until(lambda: "keep 1.00:" in panel.text_of(VIEW), "all is kept")
    return panel


def left(text):
    """The parts of the parameters and of the GFLOPs that are left, in percent."""
    return number(text, r"parameters \((\d+)%\)"), number(text, r"GFLOPs \((\d+)%\)")


def after(chapter, panel, change):
    """The view after the change, as text and as HTML."""
    before = panel.html_of(VIEW)
    change()
    html = chapter.wait_for_change(lambda: panel.html_of(VIEW), before)
    return panel.text_of(VIEW), html


def test_dragging_keep_down_leaves_less_and_less(chapter, panel):
    assert left(panel.text_of(VIEW)) == (100, 100)
    some, _ = after(chapter, panel, lambda: panel.slider("Keep").drag_to(0.6))
    few, _ = after(chapter, panel, lambda: panel.slider("Keep").drag_to(0.1))
    for all_of_it, more, less in zip((100, 100), left(some), left(few), strict=True):
        assert less < more < all_of_it


def test_each_key_is_one_plan(chapter, panel):
    text, html = after(chapter, panel, lambda: panel.slider("Keep").press("ArrowLeft"))
    assert number(text, r"keep ([\d.]+):") == 0.95
    again, _ = after(chapter, panel, lambda: panel.slider("Keep").press("ArrowLeft"))
    assert number(again, r"keep ([\d.]+):") == 0.9
    assert html.count("<svg") == 2


def test_a_promise_is_made_between_measured_points_and_not_beyond_them(chapter, panel):
    assert "fine-tuned beyond what was measured" in panel.text_of(VIEW)  # nothing was cut, so nothing was fine-tuned
    text, _ = after(chapter, panel, lambda: panel.slider("Keep").press("ArrowLeft", times=10))
    assert number(text, r"keep ([\d.]+):") == 0.5
    assert 0 <= number(text, r"pruned ([\d.]+)") <= 1
    assert 0 < number(text, r"fine-tuned ([\d.]+)") <= 1


def test_the_bars_of_the_kept_channels_shrink(chapter, panel):
    def kept(html):
        return [float(part.split(": ")[1].split("<")[0]) for part in html.split("<title>") if part.startswith("kept,")]

    before = kept(panel.html_of(VIEW))
    _, html = after(chapter, panel, lambda: panel.slider("Keep").press("Home"))
    assert len(before) == len(kept(html)) > 10
    assert all(less <= more for less, more in zip(kept(html), before, strict=True))
    assert sum(kept(html)) < 0.7 * sum(before)
