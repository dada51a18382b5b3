"""Chapter 05's widget, moved by hand in a browser: hide a part of the student's map, see what is made of the rest."""

import re

import pytest

from .lab import panel_of

CHAPTER = "05_masked_generative_distillation"


def hidden(text):
    found = re.search(r"(\d+) of (\d+) (positions|channels) masked", text)
    assert found, f"no count of what is masked in {text!r}"
    return int(found[1]), int(found[2])


def error(text):
    found = re.search(r"Error of the generated map: ([\d.]+) ", text)
    assert found, f"no error in {text!r}"
    return float(found[1])


def pictures(html):
    """The image, what is left of the student's map, the generated map and the teacher's, as they are drawn."""
    found = re.findall(r'src="([^"]+)"', html)
    assert len(found) == 4
    return found


class TestMask:
    VIEW = ".kdlab-mask"

    @pytest.fixture
    def panel(self, chapter):
        """The widget with nothing hidden."""
        panel = panel_of(chapter, self.VIEW)
        panel.dropdown("Mask").choose("spatial")
        panel.slider("Mask ratio").press("Home")
        chapter.wait_until(lambda: "ratio 0.00: 0 of 64 positions" in panel.text_of(self.VIEW), "nothing is hidden")
        return panel

    def test_dragging_the_ratio_hides_positions_and_leaves_the_teacher_alone(self, chapter, panel):
        before, words = panel.html_of(self.VIEW), panel.text_of(self.VIEW)
        assert "at masked positions" not in words
        panel.slider("Mask ratio").drag_to(0.9)
        after = chapter.wait_for_change(lambda: panel.html_of(self.VIEW), before)
        count, total = hidden(panel.text_of(self.VIEW))
        assert total == 64
        assert 40 < count < 64
        assert error(panel.text_of(self.VIEW)) > error(words)
        changed = [one != other for one, other in zip(pictures(before), pictures(after), strict=True)]
        assert changed == [False, True, True, False]

    def test_everything_hidden_names_no_kept_position(self, chapter, panel):
        panel.slider("Mask ratio").press("End")
        chapter.wait_until(lambda: "64 of 64 positions" in panel.text_of(self.VIEW), "everything is hidden")
        assert "at kept positions" not in panel.text_of(self.VIEW)

    def test_each_key_hides_more_of_the_same(self, chapter, panel):
        counts = [0]
        for _ in range(4):
            before = panel.text_of(self.VIEW)
            panel.slider("Mask ratio").press("ArrowRight", times=4)
            counts.append(hidden(chapter.wait_for_change(lambda: panel.text_of(self.VIEW), before))[0])
        assert counts == sorted(counts)
        assert counts[-1] > 35

    def test_the_button_draws_another_mask_of_the_same_ratio(self, chapter, panel):
        before = panel.html_of(self.VIEW)
        panel.slider("Mask ratio").drag_to(0.5)
        first = chapter.wait_for_change(lambda: panel.html_of(self.VIEW), before)
        ratio = panel.slider("Mask ratio").readout()
        panel.button("Draw another mask").click()
        second = chapter.wait_for_change(lambda: panel.html_of(self.VIEW), first)
        assert pictures(first)[1] != pictures(second)[1]
        assert f"mask ratio {ratio}" in panel.text_of(self.VIEW)

    def test_choosing_the_channel_mask_counts_channels(self, chapter, panel):
        panel.slider("Mask ratio").press("ArrowRight", times=10)
        panel.dropdown("Mask").choose("channel")
        chapter.wait_until(lambda: "channels masked" in panel.text_of(self.VIEW), "channels are masked")
        count, total = hidden(panel.text_of(self.VIEW))
        assert total == 64
        assert 15 < count < 49
        assert "at masked positions" not in panel.text_of(self.VIEW)

    def test_choosing_a_scene_changes_every_picture(self, chapter, panel):
        before = panel.html_of(self.VIEW)
        panel.dropdown("Scene").choose("3" if panel.dropdown("Scene").chosen() != "3" else "2")
        after = chapter.wait_for_change(lambda: panel.html_of(self.VIEW), before)
        assert all(one != other for one, other in zip(pictures(before), pictures(after), strict=True))

    def test_choosing_a_channel_shows_it_of_teacher_and_generator(self, chapter, panel):
        options = chapter.page.locator(".widget-vbox:has(> .kdlab-mask) select").nth(2).locator("option")
        assert panel.dropdown("Teacher's channel").chosen() == "all: their mean square"
        name = options.all_inner_texts()[-1]
        before = panel.html_of(self.VIEW)
        panel.dropdown("Teacher's channel").choose(name)
        after = chapter.wait_for_change(lambda: panel.html_of(self.VIEW), before)
        assert f"generated, channel {name}" in panel.text_of(self.VIEW)
        changed = [one != other for one, other in zip(pictures(before), pictures(after), strict=True)]
        assert changed == [False, False, True, True]
