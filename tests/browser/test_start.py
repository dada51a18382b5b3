"""Chapter 00, run in a browser."""

CHAPTER = "00_start_here"


def test_it_runs_and_shows_its_figures(chapter):
    assert chapter.page.locator(".jp-OutputArea img[alt]").count() >= 2
