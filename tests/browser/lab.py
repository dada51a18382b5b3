"""Drive a notebook in a real JupyterLab: run its cells, move its widgets with mouse and keyboard, read what changed.

    with lab.open(tutorials / "01_response_distillation.ipynb") as notebook:
        notebook.run_all()
        before = notebook.text_of(".temperature-explorer")
        notebook.slider("Temperature").drag_to(0.8)
        after = notebook.wait_for_change(lambda: notebook.text_of(".temperature-explorer"), before)

Nothing is set behind the user's back: a slider moves because its handle is dragged, not because the kernel was told to.
An exception in a cell or in a widget's callback fails the next wait, or the end of the ``with`` block at the latest.
"""

import base64
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

Value = TypeVar("Value")

START_SECONDS = 60.0
ACTION_SECONDS = 20.0
CHAPTER_SECONDS = 1200.0  # for all cells: on a slow machine, with an empty cache, beside another chapter
ABANDONED_SECONDS = 900
POLL_SECONDS = 0.1

SETTINGS = {
    # Without windowing every cell is in the page, also those that are scrolled out of sight.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
}

# "python3" means this Python, whatever kernels the user has registered under that name.
KERNELSPEC = {
    "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
}
# What JupyterLab asks of its server at every start, for seconds, and no test needs: whether it should be rebuilt, and
# to which formats it can export.
PAGE_CONFIG = {
    "buildCheck": False,
    "disabledExtensions": {
        "@jupyterlab/notebook-extension:export": True,
        "@jupyterlab/notebook-extension:update-raw-mimetype": True,
    },
}

# Opens the notebook and keeps, in window.kernelWatch, what a reader of the page would miss: exceptions that JupyterLab
# shows only in its log, and the messages that the kernel has not finished yet.
OPEN_NOTEBOOK = """
async path => {
  const app = window.jupyterapp;
  await app.restored;
  const panel = await app.commands.execute(
    'docmanager:open', {path, factory: 'Notebook', kernel: {name: 'python3'}});
  await panel.context.ready;
  await panel.sessionContext.ready;
  const kernel = panel.sessionContext.session.kernel;
  await kernel.info;

  const watch = window.kernelWatch = {errors: [], stderr: '', unfinished: new Set(), panel};
  const cellOf = new Map();
  const cells = () => panel.content.widgets;
  kernel.anyMessage.connect((_, {msg, direction}) => {
    const type = msg.header.msg_type, parent = msg.parent_header.msg_id;
    if (direction === 'send') {
      if (type === 'execute_request') cellOf.set(msg.header.msg_id, msg.metadata.cellId);
      if (type === 'execute_request' || type === 'comm_msg') watch.unfinished.add(msg.header.msg_id);
    } else if (type === 'status' && msg.content.execution_state === 'idle') {
      watch.unfinished.delete(parent);
    } else if (type === 'stream' && msg.content.name === 'stderr') {
      watch.stderr += msg.content.text;
    } else if (type === 'error') {
      const index = cells().findIndex(cell => cell.model.id === cellOf.get(parent));
      const expected = index >= 0 && (cells()[index].model.getMetadata('tags') ?? []).includes('raises-exception');
      const where = index >= 0 ? `cell ${index + 1}` : 'a widget callback';
      if (!expected) watch.errors.push(`${where} raised:\\n${msg.content.traceback.join('\\n')}`);
    }
  });
  kernel.statusChanged.connect((_, status) => {
    if (!['autorestarting', 'dead'].includes(status)) return;
    watch.errors.push(`the kernel died (status ${status})`);
    watch.unfinished.clear();
  });
  return true;
}
"""
RUN_ALL = """
() => {
  window.kernelWatch.running = true;
  window.jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { window.kernelWatch.running = false; });
}
"""
ALL_DONE = "() => !window.kernelWatch.running && window.kernelWatch.unfinished.size === 0"
READ_ERRORS = "() => [window.kernelWatch.errors, window.kernelWatch.stderr]"
SHUT_DOWN_KERNEL = "() => window.kernelWatch.panel.sessionContext.shutdown()"
READ_IMAGE = """
async image => {
  const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
  return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(''));
}
"""


class Lab:
    """A JupyterLab server of its own, with default settings, and one browser window on it.

    Kernels run this Python, in this process's environment (``KDLAB_CACHE`` and the like) with progress bars silenced.

    Args:
        folder: an empty folder for settings, runtime files and the copies of the notebooks.
        browser: where pages are opened.
    """

    def __init__(self, folder: Path, browser: Browser) -> None:
        self.folder = folder
        self._browser = browser
        self._opened = 0

    def __enter__(self) -> Self:
        for plugin, settings in SETTINGS.items():
            self._write_json(f"settings/{plugin}.jupyterlab-settings", settings)
        self._write_json("config/labconfig/page_config.json", PAGE_CONFIG)
        self._write_json("share/kernels/python3/kernel.json", KERNELSPEC)
        self._root.mkdir()
        self._token = secrets.token_hex()
        self._log = (self.folder / "jupyter.log").open("w+")
        self._server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"),
                *(f"--ServerApp.root_dir={self._root}", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"),
                "--LabApp.extension_manager=readonly",
                # If this process is killed, nobody stops the server: then it ends by itself, its kernels first.
                f"--ServerApp.shutdown_no_activity_timeout={ABANDONED_SECONDS}",
                *(f"--MappingKernelManager.cull_{name}={ABANDONED_SECONDS}" for name in ("idle_timeout", "interval")),
            ],
            env=os.environ
            | {
                "JUPYTER_TOKEN": self._token,
                "JUPYTER_PATH": str(self.folder / "share"),
                "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
                "JUPYTER_DATA_DIR": str(self.folder / "data"),
                "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
                "JUPYTERLAB_SETTINGS_DIR": str(self.folder / "settings"),
                "JUPYTERLAB_WORKSPACES_DIR": str(self.folder / "workspaces"),
                "IPYTHONDIR": str(self.folder / "ipython"),
                "TQDM_DISABLE": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._url = self._wait_for_url()
            self._context = self._browser.new_context(viewport={"width": 1400, "height": 1000})
        except BaseException:
            self._stop_server()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._context.close()
        finally:
            self._stop_server()

    def open(self, path: Path) -> "Notebook":
        """Open a copy of a notebook, in a copy of its whole folder, with a kernel of its own."""
        if not path.is_file():
            raise FileNotFoundError(f"there is no notebook {path}")
        self._opened += 1
        copy = self._root / str(self._opened)
        shutil.copytree(path.parent, copy, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))
        page = self._context.new_page()
        # A workspace for each page: JupyterLab would restore the last one's open notebooks, and start their kernels.
        url = f"{self._url}lab/workspaces/{self._opened}?token={self._token}"
        return Notebook(page, url, f"{self._opened}/{path.name}")

    @property
    def _root(self) -> Path:
        return self.folder / "notebooks"

    def _write_json(self, name: str, content: object) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def _wait_for_url(self) -> str:
        """The server writes its address, with the port that it got, once it listens."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._server.poll() is None:
            for info in (self.folder / "runtime").glob("jpserver-*.json"):
                try:
                    return json.loads(info.read_text())["url"]
                except json.JSONDecodeError:
                    pass  # half written
            time.sleep(POLL_SECONDS)
        log = Path(self._log.name).read_text()[-3000:]
        raise AssertionError(f"JupyterLab did not start within {START_SECONDS:.0f} s; its log ends:\n{log}")

    def _stop_server(self) -> None:
        """On the terminate signal the server ends its kernels; those of a killed server end by themselves."""
        self._server.terminate()
        try:
            self._server.wait(timeout=ACTION_SECONDS)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._log.close()


class Region:
    """A part of the page: finds widgets by the labels that a reader sees, and everything else by CSS selector."""

    def __init__(self, root: Locator) -> None:
        self._root = root

    def within(self, css: str) -> "Region":
        """The part of this region under the one element that matches, for labels that occur more than once."""
        return Region(self._root.locator(css))

    def slider(self, label: str) -> "Slider":
        """The slider with this description, or beside the Label widget with this text."""
        return Slider(self._labelled(label, "widget-slider"))

    def dropdown(self, label: str) -> "Dropdown":
        """The dropdown with this description, or beside the Label widget with this text."""
        return Dropdown(self._labelled(label, "widget-dropdown"))

    def button(self, text: str) -> Locator:
        """The button with this text: ``button("Stop").click()``."""
        return self._root.locator("button.jupyter-button").filter(has_text=_exactly(text))

    def text_of(self, css: str) -> str:
        """The visible text of the one element that matches."""
        return self._root.locator(css).inner_text()

    def html_of(self, css: str) -> str:
        """The markup inside the one element that matches: for an HTML widget that draws an SVG or an image."""
        return self._root.locator(css).inner_html()

    def image_of(self, css: str) -> bytes:
        """The encoded image that an Image widget (the one ``img`` that matches) shows."""
        return base64.b64decode(self._root.locator(css).evaluate(READ_IMAGE))

    def _labelled(self, label: str, control: str) -> Locator:
        # Only widgets are asked what they hold: XPath asks all ancestors before it takes the first, and the page has
        # ten thousand elements.
        widget, controls = _of_class("jupyter-widgets"), f"descendant-or-self::{_of_class(control)}"
        label_element = self._root.locator(".widget-label").filter(has_text=_exactly(label))
        # The label is inside the widget or in the same box; in a box of several widgets it belongs to the next one.
        box = label_element.locator(f"xpath=ancestor-or-self::{widget}[{controls}][1]")
        box.wait_for()
        found = box.locator(f"xpath={controls}")
        if found.count() > 1:
            return label_element.locator(f"xpath=(ancestor-or-self::{widget}/following-sibling::*/{controls})[1]")
        return found


class Slider:
    """One slider with one handle, moved as a user moves it."""

    def __init__(self, root: Locator) -> None:
        self._root = root
        self._handle = root.locator(".noUi-handle")

    def drag_to(self, fraction: float) -> None:
        """Drag the handle with the mouse to this fraction of the track: 0 is its left end, 1 its right end."""
        self._handle.scroll_into_view_if_needed()
        track, handle = self._root.locator(".noUi-base").bounding_box(), self._handle.bounding_box()
        assert track, "the slider's track is hidden"
        assert handle, "the slider's handle is hidden"
        mouse, y = self._root.page.mouse, handle["y"] + handle["height"] / 2
        mouse.move(handle["x"] + handle["width"] / 2, y)
        mouse.down()
        grabbed = self._handle.evaluate("handle => handle.classList.contains('noUi-active')")
        assert grabbed, "the mouse missed the slider's handle: something lies over it"
        mouse.move(track["x"] + fraction * track["width"], y, steps=8)
        mouse.up()

    def press(self, key: str, times: int = 1) -> None:
        """Press a key ("ArrowRight", "Home", ...) with the handle focused."""
        for _ in range(times):
            self._handle.press(key)

    def readout(self) -> str:
        """The value as it is written beside the slider."""
        return self._root.locator(".widget-readout").inner_text()


class Dropdown:
    """One dropdown."""

    def __init__(self, root: Locator) -> None:
        self._select = root.locator("select")

    def choose(self, option: str) -> None:
        """Choose the option with this visible text."""
        self._select.select_option(label=option)

    def chosen(self) -> str:
        """The visible text of the chosen option, in which ipywidgets makes each space a no-break one."""
        return self._select.locator("option:checked").inner_text().replace("\xa0", " ")


class Notebook(Region):
    """One open notebook with its kernel. Use it in a ``with`` block, which fails if anything raised in it."""

    def __init__(self, page: Page, url: str, path: str) -> None:
        super().__init__(page.locator(".jp-NotebookPanel"))
        self.page = page
        self._url = url
        self._path = path
        self._page_errors: list[str] = []
        page.set_default_timeout(ACTION_SECONDS * 1000)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self._on_page_error(f"{error.message}\n{error.stack}"))

    def __enter__(self) -> Self:
        try:
            self.page.goto(self._url, timeout=START_SECONDS * 1000)
            self.page.wait_for_function("window.jupyterapp !== undefined", timeout=START_SECONDS * 1000)
            # Not evaluate, which has no timeout. What an async function returns is awaited, but never asked for again.
            self.page.wait_for_function(OPEN_NOTEBOOK, arg=self._path, timeout=START_SECONDS * 1000)
        except BaseException:
            self.page.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._wait(self._all_done, "the kernel is idle", ACTION_SECONDS)
                self._raise_errors()
        finally:
            try:
                self.page.evaluate(SHUT_DOWN_KERNEL)
            finally:
                self.page.close()

    def run_all(self, timeout: float = 120.0) -> None:
        """Run all cells and wait, at most ``timeout`` seconds, until the kernel is idle.

        Raises:
            AssertionError: a cell raised; the message is the traceback. Cells tagged ``raises-exception`` may.
        """
        self.page.evaluate(RUN_ALL)
        self._wait(self._all_done, "all cells have run", timeout)
        self._raise_errors()

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = ACTION_SECONDS) -> None:
        """Wait until ``condition()`` is true; ``what`` says in the failure what was waited for.

        Raises:
            AssertionError: a cell or callback raised meanwhile, or the condition is still false after ``timeout``.
        """

        def met() -> bool:
            result = condition()
            self._raise_errors()
            return result

        self._wait(met, what, timeout)

    def wait_for_change(self, read: Callable[[], Value], before: Value, timeout: float = ACTION_SECONDS) -> Value:
        """Wait until ``read()`` differs from ``before`` and has settled, and return it.

        Settled: the kernel has answered every widget message and two readings agree, so that the values on a drag's
        way are not taken for its end. What never settles (a live curve) wants ``wait_until``.
        """
        last = (False, before)

        def settled() -> bool:
            nonlocal last
            previous, last = last, (self._all_done(), read())
            answered, value = last
            return answered and last == previous and value != before

        self.wait_until(settled, f"the reading changes from {before!r:.200} and settles", timeout)
        return last[1]

    def errors(self) -> list[str]:
        """What cells, callbacks, background threads and the page's widget code have raised so far, with tracebacks."""
        raised, stderr = self.page.evaluate(READ_ERRORS)
        if "Traceback (most recent call last)" in stderr:  # a thread or a task: their exceptions are only printed
            raised.append(f"the kernel printed an exception:\n{stderr}")
        return [re.sub(r"\x1b\[[\d;]*m", "", error) for error in raised] + self._page_errors

    def screenshot(self, path: Path) -> None:
        """Save what the window shows as an image."""
        self.page.screenshot(path=path)

    def _wait(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError("\n\n".join([f"waited {timeout:.0f} s in vain until {what}", *self.errors()]))
            self.page.wait_for_timeout(POLL_SECONDS * 1000)

    def _raise_errors(self) -> None:
        if errors := self.errors():
            raise AssertionError("\n\n".join([self._path, *errors]))

    def _all_done(self) -> bool:
        return self.page.evaluate(ALL_DONE)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._on_page_error(message.text)

    def _on_page_error(self, text: str) -> None:
        if "widget" in text.lower():  # JupyterLab has errors of its own, which are not the notebook's
            self._page_errors.append(f"the page reported: {text}")


def number(text: str, pattern: str) -> float:
    """The number that is the first group of the pattern, in what a widget says."""
    found = re.search(pattern, text)
    assert found, f"{pattern!r} not in {text!r}"
    return float(found.group(1))


def panel_of(chapter: Notebook, view: str) -> Region:
    """The box of widgets with this view in it."""
    return chapter.within(f".widget-vbox:has(> {view})")


def pictures(panel: Region, view: str) -> list[str]:
    """The PNGs that an HTML widget shows, encoded."""
    return re.findall(r'src="data:image/png;base64,([^"]+)"', panel.html_of(view))


def _of_class(name: str) -> str:
    """As XPath."""
    return f"*[contains(concat(' ', @class, ' '), ' {name} ')]"


def _exactly(text: str) -> re.Pattern[str]:
    return re.compile(rf"^\s*{re.escape(text)}\s*$")
