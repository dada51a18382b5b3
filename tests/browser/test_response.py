"""The widgets of chapter 01, moved by hand in a browser: what they show must change, and change rightly."""

import re

import pytest

from .lab import number, panel_of

CHAPTER = "01_response_distillation"


class TestTemperature:
    @pytest.fixture
    def panel(self, chapter):
        return panel_of(chapter, ".kdlab-temperature")

    def test_dragging_t_softens_both_answers(self, chapter, panel):
        view = ".kdlab-temperature"
        panel.slider("Temperature T").press("Home")
        chapter.wait_until(lambda: "T = 0.25" in panel.text_of(view), "T is at its lowest")
        cold = panel.text_of(view)
        panel.slider("Temperature T").drag_to(0.9)
        hot = chapter.wait_for_change(lambda: panel.text_of(view), cold)
        assert number(hot, r"T = ([\d.]+)") > 15
        entropy = r"entropy of the teacher ([\d.]+)"
        assert number(hot, entropy) > number(cold, entropy) + 1
        assert number(hot, r"KL = ([\d.]+)") < number(cold, r"KL = ([\d.]+)")

    def test_the_bars_are_drawn_anew_and_stay_probabilities(self, chapter, panel):
        view = ".kdlab-temperature"
        before = panel.html_of(view)
        panel.slider("Temperature T").press("ArrowLeft", times=8)
        after = chapter.wait_for_change(lambda: panel.html_of(view), before)
        values = [float(value) for value in re.findall(r"teacher, \d: ([\d.]+)", after)]
        assert len(values) == 10
        assert sum(values) == pytest.approx(1, abs=0.01)

    def test_choosing_an_image_shows_another_picture(self, chapter, panel):
        view = ".kdlab-temperature"
        before = panel.html_of(view)
        options = chapter.page.locator(".widget-vbox:has(> .kdlab-temperature) select option").all_inner_texts()
        panel.dropdown("Image").choose(options[3])
        after = chapter.wait_for_change(lambda: panel.html_of(view), before)
        picture = r'src="data:image/png;base64,([^"]+)"'
        assert re.search(picture, after).group(1) != re.search(picture, before).group(1)


class TestAlpha:
    @pytest.fixture
    def panel(self, chapter):
        return panel_of(chapter, ".kdlab-alpha")

    def test_alpha_moves_the_weight_from_the_labels_to_the_teacher(self, chapter, panel):
        view = ".kdlab-alpha"
        panel.slider("Alpha").press("Home")
        chapter.wait_until(lambda: "1.00 × cross-entropy" in panel.text_of(view), "alpha is 0")
        assert "0.00 × KD" in panel.text_of(view)
        assert set(re.findall(r"from the teacher, \d: (-?[\d.]+)", panel.html_of(view))) <= {"0.000", "-0.000"}
        panel.slider("Alpha").drag_to(1.0)
        chapter.wait_until(lambda: "1.00 × KD" in panel.text_of(view), "alpha is 1")
        assert set(re.findall(r"from the label, \d: (-?[\d.]+)", panel.html_of(view))) <= {"0.000", "-0.000"}

    def test_the_parts_add_up_at_every_setting(self, chapter, panel):
        view = ".kdlab-alpha"
        before = panel.text_of(view)
        panel.slider("Alpha").drag_to(0.3)
        text = chapter.wait_for_change(lambda: panel.text_of(view), before)
        parts = re.search(r"loss = ([\d.]+) × cross-entropy ([\d.]+) \+ ([\d.]+) × KD ([\d.]+) = ([\d.]+)", text)
        hard, ce, soft, kd, total = map(float, parts.groups())
        assert hard + soft == pytest.approx(1)
        assert total == pytest.approx(hard * ce + soft * kd, rel=0.01, abs=0.002)

    def test_temperature_and_image_change_the_pull(self, chapter, panel):
        view = ".kdlab-alpha"
        before = panel.html_of(view)
        panel.slider("Temperature T").drag_to(0.05)
        cool = chapter.wait_for_change(lambda: panel.html_of(view), before)
        options = chapter.page.locator(".widget-vbox:has(> .kdlab-alpha) select option").all_inner_texts()
        panel.dropdown("Image").choose(options[5])
        assert chapter.wait_for_change(lambda: panel.html_of(view), cool) != before


class TestLive:
    @pytest.fixture
    def panel(self, chapter):
        return panel_of(chapter, ".kdlab-live")

    def test_a_run_draws_its_curve_and_says_how_it_ended(self, chapter, panel):
        view = ".kdlab-live"
        panel.slider("Temperature T").drag_to(0.4)
        panel.dropdown("Labelled images").choose("100")
        panel.button("Distil with these settings").click()
        # The notebook's own run is still there at first, and is done.
        ended = r"Done after 10 epochs.*Run 2: 100 labels"
        chapter.wait_until(lambda: re.search(ended, panel.text_of(view)), "the second run ends", timeout=90)
        assert panel.html_of(view).count("<polyline") == 2  # the run of the notebook's own cell, and this one
        chapter.wait_until(panel.button("Distil with these settings").is_enabled, "the next run may start")

    def test_the_stop_button_is_heard(self, chapter, panel):
        view = ".kdlab-live"
        panel.button("Distil with these settings").click()
        chapter.wait_until(lambda: "epoch 1 of 10" in panel.text_of(view), "the first epoch", timeout=60)
        panel.button("Stop").click()
        chapter.wait_until(lambda: "Stopped after" in panel.text_of(view), "the run stops", timeout=60)
        assert number(panel.text_of(view), r"Stopped after (\d+) epochs") < 10
        chapter.wait_until(panel.button("Stop").is_disabled, "there is nothing to stop")
