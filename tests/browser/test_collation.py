"""Chapter 08's widget, moved by hand in a browser: the common space, step by step."""

import re

import pytest

from .lab import panel_of

CHAPTER = "08_knowledge_collation"
VIEW = ".kdlab-collation"
FROZEN = "frozen, PFE alone"


@pytest.fixture
def panel(chapter):
    """The widget at the first step of the run in which the student learns."""
    panel = panel_of(chapter, VIEW)
    panel.dropdown("Run").choose("the student learns")
    panel.dropdown("Tap").choose("encoder_fuse.3")
    panel.slider("Training step").press("Home")
    chapter.wait_until(lambda: "step 0, encoder_fuse.3" in panel.text_of(VIEW), "the first step is shown")
    return panel


def numbers(text):
    """The step, the distance to the teachers' points, and their spread."""
    found = re.search(r"step (\d+), [\w.]+: .* are ([\d.]+) from .* ([\d.]+) from their mean", text, re.DOTALL)
    assert found, f"no numbers in {text!r}"
    return int(found[1]), float(found[2]), float(found[3])


def dragged_to_the_end(chapter, panel):
    before = panel.html_of(VIEW)
    panel.slider("Training step").drag_to(1.0)
    chapter.wait_for_change(lambda: panel.html_of(VIEW), before)
    return numbers(panel.text_of(VIEW))


def test_dragging_the_step_brings_the_student_to_its_teachers(chapter, panel):
    _, far, _ = numbers(panel.text_of(VIEW))
    step, near, _ = dragged_to_the_end(chapter, panel)
    assert step == 60
    assert near < 0.7 * far


def test_each_key_is_one_snapshot(chapter, panel):
    before = panel.html_of(VIEW)
    panel.slider("Training step").press("ArrowRight")
    after = chapter.wait_for_change(lambda: panel.html_of(VIEW), before)
    assert numbers(panel.text_of(VIEW))[0] == 6
    assert after.count("<line") == before.count("<line") == 24


def test_choosing_the_frozen_run_shows_the_cloud_shrinking(chapter, panel):
    before = panel.html_of(VIEW)
    panel.dropdown("Run").choose(FROZEN)
    chapter.wait_for_change(lambda: panel.html_of(VIEW), before)
    _, _, wide = numbers(panel.text_of(VIEW))
    _, _, narrow = dragged_to_the_end(chapter, panel)
    assert narrow < 0.3 * wide


def test_choosing_a_tap_changes_points_and_words(chapter, panel):
    before = panel.html_of(VIEW)
    panel.dropdown("Tap").choose("bottleneck")
    chapter.wait_for_change(lambda: panel.html_of(VIEW), before)
    assert "step 0, bottleneck" in panel.text_of(VIEW)
