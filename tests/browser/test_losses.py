"""Chapter 03's widgets, moved by hand in a browser: the loss's gradient as a map, and RKD's geometry."""

import re

import pytest

from .lab import number, panel_of

CHAPTER = "03_the_loss_zoo"


class TestGradient:
    VIEW = ".kdlab-gradient"

    @pytest.fixture
    def panel(self, chapter):
        return panel_of(chapter, ".kdlab-gradient")

    def test_every_loss_draws_its_own_picture(self, chapter, panel):
        seen = []
        for loss in ("DKD", "DIST", "KD", "FitNets", "CWD", "AT", "SP", "RKD"):
            panel.dropdown("Loss").choose(loss)
            chapter.wait_until(lambda name=loss: f"{name} on " in panel.text_of(self.VIEW), f"{loss} is drawn")
            seen.append(panel.html_of(self.VIEW))
        assert len(set(seen)) == 8
        assert all("logit should rise or fall" in html for html in seen[:3])
        assert all("should rise (red), fall (blue)" in html for html in seen[3:])

    def test_choosing_layers_changes_the_size_of_the_maps(self, chapter, panel):
        panel.dropdown("Loss").choose("AT")
        panel.dropdown("Layers").choose("features.1 → denseblock1 (8 x 8)")
        chapter.wait_until(lambda: "AT on features.1" in panel.text_of(self.VIEW), "the early layers are drawn")
        early = panel.html_of(self.VIEW)
        panel.dropdown("Layers").choose("features.2 → denseblock2 (4 x 4)")
        late = chapter.wait_for_change(lambda: panel.html_of(self.VIEW), early)
        image = 32 * 32
        assert early.count("<rect") == image + 3 * 64
        assert late.count("<rect") == image + 3 * 16

    def test_choosing_an_image_changes_the_gradient(self, chapter, panel):
        panel.dropdown("Loss").choose("FitNets")
        chapter.wait_until(lambda: "FitNets on " in panel.text_of(self.VIEW), "FitNets is drawn")
        before = panel.text_of(self.VIEW)
        options = chapter.page.locator(".widget-vbox:has(> .kdlab-gradient) select").nth(2).locator("option")
        panel.dropdown("Image").choose(options.all_inner_texts()[-1])
        after = chapter.wait_for_change(lambda: panel.text_of(self.VIEW), before)
        length = r"length of this image's gradient ([\d.e-]+)"
        assert number(after, length) != number(before, length)


class TestGeometry:
    VIEW = ".kdlab-geometry"

    @pytest.fixture
    def panel(self, chapter):
        return panel_of(chapter, ".kdlab-geometry")

    @pytest.mark.parametrize("label", ["A: x", "A: y", "B: x", "B: y"])
    def test_dragging_a_point_moves_it_and_its_distances(self, chapter, panel, label):
        before = panel.html_of(self.VIEW)
        panel.slider(label).drag_to(0.7)
        after = chapter.wait_for_change(lambda: panel.html_of(self.VIEW), before)
        place = rf"<title>{label[0]} \(([-\d., ]+)\)</title>"
        assert re.findall(place, before)[-1] != re.findall(place, after)[-1]  # the student's plane is the second
        assert re.findall(place, before)[0] == re.findall(place, after)[0]  # the teacher's points stay
        distance = r"<title>student, AB: ([\d.]+)</title>"
        assert number(after, distance) != number(before, distance)

    def test_the_loss_is_the_weighted_sum_of_its_parts(self, chapter, panel):
        before = panel.text_of(self.VIEW)
        panel.slider("A: x").drag_to(0.9)
        text = chapter.wait_for_change(lambda: panel.text_of(self.VIEW), before)
        distance, angle, total = (
            number(text, pattern)
            for pattern in (r"distance part ([\d.]+)", r"angle part ([\d.]+)", r"50 × [\d.]+ = ([\d.]+)")
        )
        assert total == pytest.approx(25 * distance + 50 * angle, abs=0.006)

    def test_the_solution_of_the_puzzle_costs_nothing(self, chapter, panel):
        for label, steps in (("A: x", 11), ("A: y", 8), ("B: x", 14), ("B: y", 32)):
            panel.slider(label).press("Home")
            panel.slider(label).press("ArrowRight", times=steps)
        chapter.wait_until(lambda: "= 0.000" in panel.text_of(self.VIEW), "the loss is 0")
