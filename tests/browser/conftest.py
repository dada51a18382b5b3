"""Fixtures of the tests that drive notebooks in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from kdlab.doctor import find_browser

from .lab import CHAPTER_SECONDS, Lab, Notebook

TEACHES = "03_the_loss_zoo"  # it trains, for a minute, what chapters 01 and 02 then find, and would wait for beside it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The last chapters first: they run for longest, and a process that begins one at the end is waited for."""
    mine = [number for number, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    by_chapter = sorted((items[number] for number in mine), key=_place, reverse=True)
    for number, item in zip(mine, by_chapter, strict=True):
        items[number] = item


def _place(item: pytest.Item) -> tuple[bool, str]:
    module = item.getparent(pytest.Module)
    chapter = getattr(module and module.obj, "CHAPTER", "")
    return chapter == TEACHES, chapter


@pytest.fixture(scope="session")
def tutorials() -> Path:
    """The folder of the course's notebooks."""
    return Path(__file__).parents[2] / "tutorials"


# Both end with this folder's last test, not with the session: while playwright runs, no test can use asyncio.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A headless Chromium, the system's own."""
    executable = find_browser()
    if executable is None:
        pytest.skip(
            "no browser: neither Chromium nor Chrome nor Edge is here; "
            "install Chromium (for example: apt-get install chromium, or brew install --cask chromium)"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--disable-gpu", "--disable-quic"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory, users_cache: str | None) -> Iterator[Lab]:
    """A running JupyterLab: ``with lab.open(path) as notebook: ...``.

    Its kernels use the user's own cache, so that the teacher is trained once, here or in the notebooks' own test.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("KDLAB_CACHE")
        if users_cache is not None:
            patch.setenv("KDLAB_CACHE", users_cache)
        with Lab(tmp_path_factory.mktemp("lab"), browser) as lab:
            yield lab


@pytest.fixture(scope="module")
def chapter(request: pytest.FixtureRequest, lab: Lab, tutorials: Path) -> Iterator[Notebook]:
    """The notebook that the module names as its ``CHAPTER``, after all its cells have run."""
    with lab.open(tutorials / f"{request.module.CHAPTER}.ipynb") as notebook:
        notebook.run_all(CHAPTER_SECONDS)
        yield notebook
