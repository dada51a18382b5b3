"""Where the cache is."""

from pathlib import Path

import pytest

from kdlab.paths import cache_dir


@pytest.mark.parametrize(
    ("given", "folder"),
    [(None, ".cache/kdlab"), ("", ".cache/kdlab"), ("~/mine", "mine"), ("/somewhere", "/somewhere")],
)
def test_the_cache_is_where_the_environment_says_or_in_the_home_folder(given, folder, monkeypatch):
    monkeypatch.delenv("KDLAB_CACHE")
    if given is not None:
        monkeypatch.setenv("KDLAB_CACHE", given)
    assert cache_dir() == Path.home() / folder
