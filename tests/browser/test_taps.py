"""The widget of chapter 02, moved by hand in a browser."""

import re

import pytest

from .lab import panel_of

CHAPTER = "02_taps_and_connectors"
VIEW = ".kdlab-taps"
MET, APART = "They meet", "They do not meet"


@pytest.fixture
def panel(chapter):
    return panel_of(chapter, VIEW)


def choose(chapter, panel, label, option):
    """Choose it, and wait until the view shows something else."""
    before = panel.html_of(VIEW)
    if panel.dropdown(label).chosen() != option:
        panel.dropdown(label).choose(option)
        chapter.wait_for_change(lambda: panel.html_of(VIEW), before)
    return panel.text_of(VIEW)


def pictures(panel):
    return re.findall(r'src="data:image/png;base64,([^"]+)"', panel.html_of(VIEW))


def test_the_connector_decides_whether_two_layers_meet(chapter, panel):
    choose(chapter, panel, "Student layer", "features.2")
    choose(chapter, panel, "Teacher layer", "features.transition1")
    assert "channels differ" in choose(chapter, panel, "Connector", "none")
    assert APART in choose(chapter, panel, "Connector", "resize")
    text = choose(chapter, panel, "Connector", "1x1 convolution")
    assert f"{MET}." in text
    assert "4,224 parameters → 128 × 4 × 4" in text
    assert "enough would be: 1x1 convolution" in choose(chapter, panel, "Connector", "3x3 convolution")


def test_a_layer_of_another_size_needs_more(chapter, panel):
    choose(chapter, panel, "Student layer", "features.1")
    choose(chapter, panel, "Teacher layer", "features.denseblock3")
    text = choose(chapter, panel, "Connector", "1x1 convolution")
    assert "size differ" in text
    assert "Needed at least: 1x1 convolution, then resize" in text
    assert MET in choose(chapter, panel, "Connector", "1x1 convolution, then resize")


def test_each_layer_and_the_image_have_a_picture_of_their_own(chapter, panel):
    choose(chapter, panel, "Student layer", "features.0")
    choose(chapter, panel, "Teacher layer", "features.relu0")
    image, student, teacher = pictures(panel)
    choose(chapter, panel, "Student layer", "features.1")
    assert [a == b for a, b in zip(pictures(panel), (image, student, teacher), strict=True)] == [True, False, True]
    choose(chapter, panel, "Teacher layer", "features.denseblock1")
    assert [a == b for a, b in zip(pictures(panel), (image, student, teacher), strict=True)] == [True, False, False]
    assert "a 7" in choose(chapter, panel, "Image", "a 7")
    assert image not in pictures(panel)
