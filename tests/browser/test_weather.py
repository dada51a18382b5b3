"""The widgets of chapter 07, moved by hand in a browser."""

import pytest

from .lab import number, panel_of, pictures

CHAPTER = "07_weather_and_teachers"
MAKER, SLIDE = ".kdlab-weather", ".kdlab-before-after"


def picture(panel, view):
    (found,) = pictures(panel, view)
    return found


def decibels(text):
    return number(text, r"PSNR ([\d.]+) dB")


def after(chapter, panel, view, change):
    """The text after the change, which must have given another picture."""
    before = picture(panel, view)
    change()
    chapter.wait_for_change(lambda: picture(panel, view), before)
    return panel.text_of(view)


class TestMaker:
    @pytest.fixture
    def panel(self, chapter):
        return panel_of(chapter, MAKER)

    def choose(self, chapter, panel, weather):
        panel.dropdown("Weather").choose(weather)
        chapter.wait_until(lambda: panel.text_of(MAKER).startswith(f"{weather} with"), f"the weather is {weather}")

    def test_denser_haze_lets_less_through(self, chapter, panel):
        self.choose(chapter, panel, "haze")
        thin = after(chapter, panel, MAKER, lambda: panel.slider("Haze β").drag_to(0.1))
        dense = after(chapter, panel, MAKER, lambda: panel.slider("Haze β").drag_to(0.9))
        assert number(dense, r"beta ([\d.]+)") > number(thin, r"beta ([\d.]+)") + 1
        assert number(dense, r"light (\d+)%") < number(thin, r"light (\d+)%")
        assert decibels(dense) < decibels(thin)
        text = after(chapter, panel, MAKER, lambda: panel.slider("Airlight A").press("Home"))
        assert "airlight 0:" in text

    def test_more_drops_cost_more_and_the_angle_turns_them(self, chapter, panel):
        self.choose(chapter, panel, "rain")
        panel.slider("Drops or flakes").press("Home")
        chapter.wait_until(lambda: "density 0," in panel.text_of(MAKER), "there is no drop")
        assert decibels(panel.text_of(MAKER)) == 100
        few = after(chapter, panel, MAKER, lambda: panel.slider("Drops or flakes").drag_to(0.3))
        many = after(chapter, panel, MAKER, lambda: panel.slider("Drops or flakes").drag_to(0.95))
        assert decibels(many) < decibels(few) < 100
        turned = after(chapter, panel, MAKER, lambda: panel.slider("Angle of the rain").drag_to(0.9))
        assert number(turned, r"angle (-?\d+)") > 30

    def test_larger_flakes_are_other_flakes(self, chapter, panel):
        self.choose(chapter, panel, "snow")
        small = after(chapter, panel, MAKER, lambda: panel.slider("Flake size").drag_to(0.1))
        large = after(chapter, panel, MAKER, lambda: panel.slider("Flake size").drag_to(0.8))
        assert number(large, r"size ([\d.]+)") > number(small, r"size ([\d.]+)") + 1

    def test_what_a_weather_does_not_listen_to_is_disabled(self, chapter, panel):
        off = chapter.page.locator(f".widget-vbox:has(> {MAKER}) .widget-slider:has([disabled]) .widget-label")
        for weather, labels in (
            ("snow", {"Haze β", "Airlight A", "Angle of the rain"}),
            ("rain", {"Haze β", "Airlight A", "Flake size"}),
            ("haze", {"Drops or flakes", "Angle of the rain", "Flake size"}),
        ):
            self.choose(chapter, panel, weather)
            chapter.wait_until(lambda want=labels: set(off.all_inner_texts()) == want, f"{labels} are disabled")


class TestBeforeAfter:
    @pytest.fixture
    def panel(self, chapter):
        return panel_of(chapter, SLIDE)

    def test_dragging_the_divider_changes_the_picture_and_no_number(self, chapter, panel):
        panel.slider("Divider").drag_to(0.2)
        words = panel.text_of(SLIDE)
        assert after(chapter, panel, SLIDE, lambda: panel.slider("Divider").drag_to(0.8)) == words

    def test_each_side_shows_the_chosen_version(self, chapter, panel):
        panel.dropdown("Photograph").choose("cat in rain")
        panel.dropdown("Right").choose("haze teacher")
        chapter.wait_until(lambda: "right: haze teacher" in panel.text_of(SLIDE), "the haze teacher is at the right")
        harmed = panel.text_of(SLIDE)
        helped = after(chapter, panel, SLIDE, lambda: panel.dropdown("Right").choose("rain teacher"))
        assert number(helped, r"right: rain teacher, ([\d.]+) dB") > number(harmed, r"right: haze teacher, ([\d.]+) dB")
        left = after(chapter, panel, SLIDE, lambda: panel.dropdown("Left").choose("clean"))
        assert "left: clean ·" in left

    def test_another_photograph_is_another_picture(self, chapter, panel):
        text = after(chapter, panel, SLIDE, lambda: panel.dropdown("Photograph").choose("motorcycle in snow"))
        assert "motorcycle in snow" in text
