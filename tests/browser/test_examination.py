"""The widgets of chapter 09, moved by hand in a browser."""

import re

import pytest

from .lab import number, panel_of

CHAPTER = "09_knowledge_examination"
STAGES, COMPARE = ".kdlab-stages", ".kdlab-before-after"


class TestStages:
    @pytest.fixture
    def panel(self, chapter):
        """The widget at the first epoch, with a first stage of about a half."""
        panel = panel_of(chapter, STAGES)
        panel.slider("First stage's share").drag_to(0.5)
        panel.slider("Epoch").press("Home")
        first = re.compile(r"Epoch 1 of \d+, first stage; the total is \d")
        chapter.wait_until(lambda: first.search(panel.text_of(STAGES)) is not None, "the first epoch is marked")
        return panel

    def test_dragging_the_epoch_past_the_switch_changes_what_weighs(self, chapter, panel):
        before = panel.text_of(STAGES)
        assert "first stage; the total is " in before
        assert panel.html_of(STAGES).count("weighs nothing") == 2  # the clean images and HCR
        panel.slider("Epoch").press("End")
        after = chapter.wait_for_change(lambda: panel.text_of(STAGES), before)
        assert "second stage; the total is " in after
        assert panel.html_of(STAGES).count("weighs nothing") == 4
        assert number(panel.html_of(STAGES), r">0\.2 × ([\d.]+)<") > 0  # HCR

    def test_the_rate_depends_on_the_epoch_and_not_on_the_share(self, chapter, panel):
        rate = re.compile(r"\d\.\d\de-\d\d")
        before = panel.html_of(STAGES)
        panel.slider("First stage's share").press("ArrowRight", times=10)
        shared = chapter.wait_for_change(lambda: panel.html_of(STAGES), before)
        assert rate.findall(shared) == rate.findall(before)
        panel.slider("Epoch").press("End")
        last = chapter.wait_for_change(lambda: panel.html_of(STAGES), shared)
        assert rate.findall(last) != rate.findall(before)

    def test_a_stage_that_was_not_recorded_has_no_total(self, chapter, panel):
        before = panel.html_of(STAGES)
        panel.slider("First stage's share").press("Home")
        after = chapter.wait_for_change(lambda: panel.html_of(STAGES), before)
        assert "second stage; the total is not known" in panel.text_of(STAGES)
        assert "0.2 × not computed" in after
        assert after.count("<rect") == 2 * number(after, r"Epoch 1 of (\d+)")  # two parts, in every epoch


class TestCompare:
    @pytest.fixture
    def panel(self, chapter):
        return panel_of(chapter, COMPARE)

    def picture(self, panel):
        return re.search(r'src="([^"]+)"', panel.html_of(COMPARE)).group(1)

    def change(self, chapter, panel, act):
        """What the panel shows after an act that must change its picture."""
        before = self.picture(panel)
        act()
        chapter.wait_for_change(lambda: self.picture(panel), before)
        return panel.text_of(COMPARE)

    def test_the_divider_shows_more_of_the_left_image(self, chapter, panel):
        words = panel.text_of(COMPARE)
        after = self.change(chapter, panel, lambda: panel.slider("Divider").drag_to(0.9))
        assert after == words  # the decibels are the whole images'
        self.change(chapter, panel, lambda: panel.slider("Divider").drag_to(0.1))

    def test_each_side_names_its_version_and_how_good_it_is(self, chapter, panel):
        self.change(chapter, panel, lambda: panel.slider("Divider").drag_to(0.5))
        self.change(chapter, panel, lambda: panel.dropdown("Left").choose("degraded"))
        words = self.change(chapter, panel, lambda: panel.dropdown("Right").choose("clean"))
        assert re.search(r"left: degraded, [\d.]+ dB · right: clean", words)
        words = self.change(chapter, panel, lambda: panel.dropdown("Right").choose("from scratch"))
        assert number(words, r"right: from scratch, ([\d.]+) dB") > 10

    def test_another_photograph_is_another_picture(self, chapter, panel):
        words = self.change(chapter, panel, lambda: panel.dropdown("Photograph").choose("motorcycle, snow"))
        assert words.startswith("motorcycle, snow")
