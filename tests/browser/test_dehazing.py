"""The widgets of chapter 10, moved by hand in a browser."""

import pytest

from .lab import number, panel_of, pictures

CHAPTER = "10_dehazing_srktdn"
MAKER, ENSEMBLE, ATTENTION, SLIDE = ".kdlab-haze", ".kdlab-ensemble", ".kdlab-attention", ".kdlab-before-after"


def after(chapter, panel, view, change):
    """The text after the change, which must have given another view."""
    before = panel.html_of(view)
    change()
    chapter.wait_for_change(lambda: panel.html_of(view), before)
    return panel.text_of(view)


class TestMaker:
    @pytest.fixture
    def panel(self, chapter):
        return panel_of(chapter, MAKER)

    def test_without_haze_the_prior_finds_some(self, chapter, panel):
        panel.slider("Density β").drag_to(0.5)
        text = after(chapter, panel, MAKER, lambda: panel.slider("Density β").press("Home"))
        assert number(text, r"hazy: PSNR ([\d.]+) dB") == 100
        assert number(text, r"by the dark channel: PSNR ([\d.]+) dB") < 40
        assert "100% of the light" in text

    def test_denser_haze_lets_less_through(self, chapter, panel):
        thin = after(chapter, panel, MAKER, lambda: panel.slider("Density β").drag_to(0.2))
        dense = after(chapter, panel, MAKER, lambda: panel.slider("Density β").drag_to(0.9))
        assert number(dense, r"(\d+)% of the light") < number(thin, r"(\d+)% of the light")

    def test_depth_and_patches_change_the_transmission(self, chapter, panel):
        panel.slider("Density β").drag_to(0.5)
        even = pictures(panel, MAKER)
        assert len(even) == 4
        after(chapter, panel, MAKER, lambda: panel.slider("Patchiness").press("End"))
        patchy = pictures(panel, MAKER)
        text = after(chapter, panel, MAKER, lambda: panel.slider("Depth").press("Home"))
        assert len({one[2] for one in (even, patchy, pictures(panel, MAKER))}) == 3
        assert "relief 0, patchiness 1" in text


class TestEnsemble:
    @pytest.fixture
    def panel(self, chapter):
        """The widget with the ensemble off, at the first position."""
        panel = panel_of(chapter, ENSEMBLE)
        panel.dropdown("Self-ensemble").choose("off")
        panel.slider("Position").press("Home")
        chapter.wait_until(lambda: "position 1: PSNR" in panel.text_of(ENSEMBLE), "the first position is shown")
        return panel

    def test_on_is_the_mean_of_all_and_off_one_of_them(self, chapter, panel):
        one = number(panel.text_of(ENSEMBLE), r"position 1: PSNR ([\d.]+) dB")
        text = after(chapter, panel, ENSEMBLE, lambda: panel.dropdown("Self-ensemble").choose("on"))
        mean = number(text, r"mean of eight positions: PSNR ([\d.]+) dB")
        assert mean == number(text, r"their mean ([\d.]+) dB")
        assert mean > one - 1

    def test_each_key_is_one_position(self, chapter, panel):
        before = pictures(panel, ENSEMBLE)
        text = after(chapter, panel, ENSEMBLE, lambda: panel.slider("Position").press("ArrowRight"))
        assert "position 2: PSNR" in text
        assert pictures(panel, ENSEMBLE) != before

    def test_while_it_is_on_no_position_can_be_chosen(self, chapter, panel):
        off = chapter.page.locator(f".widget-vbox:has(> {ENSEMBLE}) .widget-slider:has([disabled]) .widget-label")
        assert off.all_inner_texts() == []
        panel.dropdown("Self-ensemble").choose("on")
        chapter.wait_until(lambda: off.all_inner_texts() == ["Position"], "the slider is disabled")


class TestAttention:
    @pytest.fixture
    def panel(self, chapter):
        return panel_of(chapter, ATTENTION)

    def click(self, chapter, row, column):
        cell = f'.widget-vbox:has(> {ATTENTION}) button[title="row {row}, column {column}"]'
        chapter.page.locator(cell).click()

    def test_a_click_on_the_photograph_chooses_a_place(self, chapter, panel):
        first = after(chapter, panel, ATTENTION, lambda: self.click(chapter, 2, 3))
        assert "Row 25, column 41, where" in first
        second = after(chapter, panel, ATTENTION, lambda: self.click(chapter, 8, 12))
        assert "Row 121, column 185, where" in second
        marks = chapter.page.locator(f".widget-vbox:has(> {ATTENTION}) button", has_text="×")
        chapter.wait_until(lambda: marks.count() == 1, "one place alone is marked")
        assert marks.get_attribute("title") == "row 8, column 12"
        for block in ("1/16 of the size", "1/8", "1/4"):
            assert 0 < number(second, rf"{block}: ([\d.]+), more than") < 1

    def test_the_click_lands_on_the_part_of_the_picture_that_it_names(self, chapter, panel):
        """The button of a row and a column lies where that part of the photograph is drawn."""
        inside = f".widget-vbox:has(> {ATTENTION}) "
        photograph = chapter.page.locator(f"{inside} .widget-gridbox img").first.bounding_box()
        button = chapter.page.locator(f'{inside} button[title="row 3, column 5"]').bounding_box()
        assert abs(button["x"] - photograph["x"] - 4 * 32) < 4
        assert abs(button["y"] - photograph["y"] - 2 * 32) < 4

    def test_another_haze_keeps_the_place(self, chapter, panel):
        after(chapter, panel, ATTENTION, lambda: self.click(chapter, 5, 6))
        panel.dropdown("Photograph").choose("even")
        chapter.wait_until(lambda: panel.dropdown("Photograph").chosen() == "even", "the even haze is chosen")
        text = after(chapter, panel, ATTENTION, lambda: panel.dropdown("Photograph").choose("patchy"))
        assert "Row 73, column 89" in text


class TestBeforeAfter:
    def test_the_divider_and_the_versions(self, chapter):
        panel = panel_of(chapter, SLIDE)
        panel.dropdown("Photograph").choose("cat, homogeneous")
        chapter.wait_until(lambda: panel.text_of(SLIDE).startswith("cat, homogeneous"), "the cat is shown")
        text = after(chapter, panel, SLIDE, lambda: panel.dropdown("Right").choose("alone"))
        assert number(text, r"right: alone, ([\d.]+) dB") > 0
        assert after(chapter, panel, SLIDE, lambda: panel.slider("Divider").drag_to(0.8)) == text
