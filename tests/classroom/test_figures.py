"""Figures and charts: alt text always, palette and markers, a table, SVG that says what it shows."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from kdlab import InputError
from kdlab.classroom import PALETTE, figure, figures, read_evidence, show, show_table, start
from kdlab.classroom.figures import use_style
from kdlab.classroom.svg import bar_chart, line_chart


@pytest.fixture
def displayed(monkeypatch):
    """The HTML of all that was displayed."""
    html = []
    monkeypatch.setattr(figures, "display", lambda shown: html.append(shown.data))
    return html


def test_a_figure_is_shown_with_its_alt_text_and_closed(displayed):
    fig, ax = figure(width=2, height=2)
    ax.plot([0, 1])
    show(fig, 'rises from "0" to 1')
    assert displayed[0].startswith('<img alt="rises from &quot;0&quot; to 1" src="data:image/png;base64,')
    assert not plt.fignum_exists(fig.number)


def test_a_figure_of_photographs_takes_fewer_bytes(displayed):
    for photographs in (False, True):
        fig, ax = figure(width=2, height=2)
        ax.imshow(np.random.default_rng(0).random((64, 64, 3)))
        show(fig, "noise", photographs=photographs)
    assert 'src="data:image/jpeg;base64,' in displayed[1]
    assert len(displayed[1]) < len(displayed[0]) / 2


def test_a_figure_without_alt_text_is_refused():
    with pytest.raises(InputError, match="empty text"):
        show(figure()[0], "  ")


def test_lines_differ_in_colour_and_in_marker():
    use_style()
    _, ax = figure()
    lines = [ax.plot([0, 1])[0] for _ in range(5)]
    assert [line.get_color() for line in lines] == list(PALETTE[:5])
    assert len({line.get_marker() for line in lines}) == 5
    plt.close("all")


def test_a_table_has_its_caption_and_rounded_numbers(displayed):
    show_table(pd.DataFrame({"a": [0.12345]}), "the caption")
    assert "the caption" in displayed[0]
    assert "0.123<" in displayed[0]


def test_a_table_shown_once_more_is_the_same_to_the_letter(displayed):
    for _ in range(2):
        show_table(pd.DataFrame({"a": [1.0]}), "one")
    show_table(pd.DataFrame({"a": [1.0]}), "another")
    first, again, another = (re.search(r'<table id="(\w+)"', shown)[1] for shown in displayed)
    assert first == again != another


def test_bars_stand_on_zero_and_are_cut_at_the_limits():
    chart = bar_chart({"one": [0.5, -9.0]}, ["x", "y"], "two bars", (-1.0, 1.0), ylabel="m < n")
    assert 'aria-label="two bars"' in chart
    assert ">m &lt; n</text>" in chart
    assert "<title>one, x: 0.500</title>" in chart
    bars = [float(height) for height in re.findall(r'height="([\d.]+)" fill="[^"]+"><title>', chart)]
    assert bars[1] == pytest.approx(2 * bars[0], abs=0.11)


def test_a_line_chart_has_a_line_for_each_series():
    chart = line_chart({"a": [(0, 0), (1, 1)], "b <c>": [(0, 1)]}, "lines", xlimit=2, xlabel="epoch", ylabel="loss")
    assert chart.count("<polyline") == 2
    assert ">epoch</text>" in chart
    assert ">loss</text>" in chart
    assert "b &lt;c&gt;" in chart


@pytest.mark.parametrize(("given", "name"), [(None, "fast"), ("fast", "fast"), ("full", "full")])
def test_the_profile_comes_from_the_environment_and_is_printed(given, name, monkeypatch, capsys):
    monkeypatch.delenv("KDLAB_PROFILE", raising=False)
    if given:
        monkeypatch.setenv("KDLAB_PROFILE", given)
    profile = start()
    assert (profile.name, profile.full) == (name, name == "full")
    assert f"profile {name}" in capsys.readouterr().out


def test_an_unknown_profile_is_refused(monkeypatch):
    monkeypatch.setenv("KDLAB_PROFILE", "quick")
    with pytest.raises(InputError, match="'quick'; wanted: 'fast' or 'full'"):
        start()


def test_a_chapter_without_a_table_is_named():
    with pytest.raises(InputError, match=r"evidence\.py nothing"):
        read_evidence("nothing")
