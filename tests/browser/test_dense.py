"""The widgets of chapter 04, moved by hand in a browser."""

import re

import pytest

from .lab import number, panel_of, pictures

CHAPTER = "04_channel_wise_distillation"
CHANNEL, ERRORS = ".kdlab-channel", ".kdlab-errors"
POSITIONS = re.compile(r": ([\d.]+) of 64 positions")


def changed(chapter, panel, view, change):
    """Which of the pictures are others after the change."""
    before, old = pictures(panel, view), panel.html_of(view)
    change()
    chapter.wait_for_change(lambda: panel.html_of(view), old)
    return [a != b for a, b in zip(before, pictures(panel, view), strict=True)]


def options(chapter, view, number):
    """What the panel's dropdown of this number offers."""
    found = chapter.page.locator(f".widget-vbox:has(> {view}) select").nth(number).locator("option").all_inner_texts()
    return [text.replace("\xa0", " ") for text in found]


class TestChannel:
    @pytest.fixture
    def panel(self, chapter):
        return panel_of(chapter, CHANNEL)

    def test_dragging_the_temperature_spreads_both_maps(self, chapter, panel):
        panel.slider("Temperature τ").press("Home")
        chapter.wait_until(lambda: "τ = 0.25:" in panel.text_of(CHANNEL), "τ is at its lowest")
        cold = panel.text_of(CHANNEL)
        panel.slider("Temperature τ").drag_to(0.95)
        hot = chapter.wait_for_change(lambda: panel.text_of(CHANNEL), cold)
        assert number(hot, r"τ = ([\d.]+):") > 15
        few, many = ([float(value) for value in POSITIONS.findall(text)] for text in (cold, hot))
        assert len(few) == len(many) == 2
        assert max(few) < 16 < 55 < min(many)
        assert number(hot, r"KL = ([\d.]+)") < number(cold, r"KL = ([\d.]+)")

    def test_the_channel_changes_both_maps_and_not_the_scene(self, chapter, panel):
        panel.slider("Temperature τ").drag_to(0.15)
        assert changed(chapter, panel, CHANNEL, lambda: panel.dropdown("Channel").choose("ring")) == [False, True, True]
        assert "Channel “ring”" in panel.text_of(CHANNEL)

    def test_the_student_changes_its_own_map(self, chapter, panel):
        before = panel.text_of(CHANNEL)
        assert changed(chapter, panel, CHANNEL, lambda: panel.dropdown("Student").choose("CWD logits"))[0] is False
        after = panel.text_of(CHANNEL)
        assert "CWD logits: " in after
        assert "alone: " in before
        assert POSITIONS.findall(after)[0] == POSITIONS.findall(before)[0]  # the teacher's are the same
        assert POSITIONS.findall(after)[1] != POSITIONS.findall(before)[1]

    def test_another_scene_changes_all_three(self, chapter, panel):
        scene = options(chapter, CHANNEL, 0)[4]
        assert changed(chapter, panel, CHANNEL, lambda: panel.dropdown("Scene").choose(scene)) == [True, True, True]
        assert scene in panel.text_of(CHANNEL)


class TestErrors:
    @pytest.fixture
    def panel(self, chapter):
        return panel_of(chapter, ERRORS)

    def test_another_scene_has_other_answers_and_other_errors(self, chapter, panel):
        scene = options(chapter, ERRORS, 0)[2]
        seen = changed(chapter, panel, ERRORS, lambda: panel.dropdown("Scene").choose(scene))
        assert seen == [True] * 8  # the mask, three answers, the image, and their errors
        assert scene in panel.text_of(ERRORS)

    def test_the_shares_are_those_of_the_pixels_that_are_counted(self, chapter, panel):
        text = panel.text_of(ERRORS)
        for name in ("teacher", "alone", "CWD logits"):
            wrong = number(text, rf"{name}: (\d+) pixels wrong")
            assert number(text, rf"{name} ([\d.]+)%") == pytest.approx(100 * wrong / 64**2, abs=0.06)
        assert "shape named wrongly" in text
        assert "background" in text
