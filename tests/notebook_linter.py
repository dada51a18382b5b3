"""What every committed notebook keeps to, as rules that each say in words what is wrong.

Markdown is looked at as the HTML that nbconvert makes of it, so that code, mathematics and links are told apart as
they are for the reader.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup, Tag
from nbconvert.filters import markdown2html
from nbformat import NotebookNode

SECTIONS = (
    "Why",
    "Predict",
    "Derive",
    "Check",
    "Distil",
    "Look",
    "Drag",
    "Break it",
    "Exercises",
    "Summary",
    "References",
)
OPENING = ("You will be able to", "Minutes", "Prerequisites")
LARGEST = 1_000_000  # bytes
LONGEST, LONGEST_MEDIAN = 25, 8  # lines of code in a cell
NETWORK = re.compile(
    r"https?://|download\s*=\s*True|\bimport\s+(urllib|requests)\b|\bfrom\s+(urllib|requests)\b|\b(urllib|requests)\."
    r"|\bpip\s+install\b"
)
MACHINE = re.compile(r"(?<![\w.~])/(tmp|home|root|Users|work|var)/\S*")  # the course's own are relative, or begin at ~
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


def lint(path: Path) -> list[str]:
    """Everything that is wrong with a notebook, one sentence each; empty where all is well.

    Args:
        path: an .ipynb file. One whose name starts with a number from 01 on is a chapter and must have its sections.
    """
    size = path.stat().st_size
    too_large = [f"the file has {size:,} bytes; at most {LARGEST:,}"] if size > LARGEST else []
    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError) as error:
        return [*too_large, f"no valid notebook: {str(error).splitlines()[0]}"]

    faults = too_large
    for rule in (_metadata, _opening, _execution, _outputs, _images, _marked, _code):
        faults += rule(notebook)
    faults += _links(notebook, path.parent)
    if re.match(r"(?!00)\d\d_", path.name):
        faults += [*_sections(notebook), *_exercises(notebook)]
    return faults


def _cells(notebook: NotebookNode, kind: str) -> Iterator[tuple[str, NotebookNode]]:
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == kind:
            yield f"cell {number}", cell


def _pages(notebook: NotebookNode) -> Iterator[tuple[str, BeautifulSoup]]:
    """All that is HTML or becomes it: markdown cells and HTML outputs."""
    for place, cell in _cells(notebook, "markdown"):
        yield place, _page(markdown2html(cell.source))
    for place, cell in _cells(notebook, "code"):
        for output in cell.outputs:
            if "text/html" in output.get("data", {}):
                yield f"{place}'s output", _page(output.data["text/html"])


def _page(html: str) -> BeautifulSoup:
    return BeautifulSoup(html, "html.parser")


def _marks(notebook: NotebookNode) -> list[Tag]:
    """Headings and summaries of folded parts, in reading order."""
    pages = [_page(markdown2html(cell.source)) for _, cell in _cells(notebook, "markdown")]
    return [mark for page in pages for mark in page.select(f"{', '.join(HEADINGS)}, details:not([open]) > summary")]


def _text(mark: Tag) -> str:
    return mark.get_text().strip().removesuffix("¶")


def _metadata(notebook: NotebookNode) -> Iterator[str]:
    if "widgets" in notebook.metadata:
        yield "widget state is stored in the notebook's metadata; `make notebooks` leaves it out"
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        yield f"the kernel is {kernel!r}; wanted 'python3'"


def _opening(notebook: NotebookNode) -> Iterator[str]:
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell is no title (a markdown cell that starts with '# ')"
        return
    for words in OPENING:
        if words not in first.source:
            yield f"the first cell lacks {words!r}"


def _execution(notebook: NotebookNode) -> Iterator[str]:
    for expected, (place, cell) in enumerate(_cells(notebook, "code"), start=1):
        if cell.execution_count is None:
            yield f"{place} is not executed"
        elif cell.execution_count != expected:
            yield f"{place} was executed as number {cell.execution_count}; wanted {expected}"


def _outputs(notebook: NotebookNode) -> Iterator[str]:
    for place, cell in _cells(notebook, "code"):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"{place} ends in an error: {output.ename}"
            elif output.get("name") == "stderr":
                yield f"{place} writes to stderr: {output.text.strip()[:80]!r}"
            elif found := MACHINE.search(output.get("text", "")):
                yield f"{place} prints a path of the machine that it was executed on: {found[0]!r}"


def _images(notebook: NotebookNode) -> Iterator[str]:
    for place, page in _pages(notebook):
        for image in page.find_all("img"):
            if not str(image.get("alt", "")).strip():
                yield f"{place} has an image without alt text"
    for place, cell in _cells(notebook, "code"):
        for output in cell.outputs:
            for kind in output.get("data", {}):
                if kind.startswith("image/") and not output.metadata.get(kind, {}).get("alt", "").strip():
                    yield f"{place}'s output has an image without alt text ({kind})"


def _marked(notebook: NotebookNode) -> Iterator[str]:
    for place, cell in _cells(notebook, "markdown"):
        page = _page(markdown2html(cell.source))
        for code in page.find_all(["code", "pre"]):
            code.decompose()
        text = re.sub(r"\${1,2}[^$]+\${1,2}", "", page.get_text())
        if found := re.search(r"`[^`\n]*`?|\*\w[^*\n]*\*", text):
            yield f"{place} shows its marks to the reader: {found[0]!r}; wanted: blank lines around it, between HTML"


def _code(notebook: NotebookNode) -> Iterator[str]:
    lengths = []
    for place, cell in _cells(notebook, "code"):
        if found := NETWORK.search(cell.source):
            yield f"{place} goes to the network: {found.group()!r}"
        lines = [line for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        lengths.append(len(lines))
        if len(lines) > LONGEST and not re.match(r"# long: *\S", cell.source):
            yield f"{place} has {len(lines)} lines of code; at most {LONGEST}, or '# long: why' as its first line"
    if lengths and median(lengths) > LONGEST_MEDIAN:
        yield f"the median code cell has {median(lengths):g} lines; at most {LONGEST_MEDIAN}"


def _links(notebook: NotebookNode, folder: Path) -> Iterator[str]:
    for place, page in _pages(notebook):
        targets = [link.get("href") for link in page.find_all("a")] + [img.get("src") for img in page.find_all("img")]
        for target in filter(None, targets):
            link = urlsplit(str(target))
            if not (link.scheme or link.netloc) and link.path and not (folder / unquote(link.path)).exists():
                yield f"{place} links to {target}, which is not there"


def _sections(notebook: NotebookNode) -> Iterator[str]:
    headings = [_text(mark) for mark in _marks(notebook) if mark.name in HEADINGS]
    start = 0
    for section in SECTIONS:
        places = (at for at, text in enumerate(headings) if at >= start and re.match(rf"{section}\b", text))
        at = next(places, None)
        if at is None:
            yield f"section {section!r} is missing or out of order; the order is {', '.join(SECTIONS)}"
        else:
            start = at + 1


def _exercises(notebook: NotebookNode) -> Iterator[str]:
    exercises: list[tuple[str, list[str]]] = []  # and what is folded under each
    level = ""  # of the heading of the exercise that the reader is in
    for mark in _marks(notebook):
        text = _text(mark)
        if mark.name == "summary":
            if level:
                exercises[-1][1].append(text)
        elif re.match(r"Exercise\b", text):
            exercises.append((text, []))
            level = mark.name
        elif mark.name <= level:
            level = ""
    if not exercises:
        yield "there is no exercise (a heading that starts with 'Exercise')"
    for exercise, folded in exercises:
        solution = next((at for at, text in enumerate(folded) if text.startswith("Solution")), None)
        hints = sum(text.startswith("Hint") for text in folded[:solution])
        if hints != 2:
            yield f"{exercise!r} has {hints} folded hints before its solution; wanted two (a <summary> with 'Hint')"
        if solution is None:
            yield f"{exercise!r} has no folded solution (<details> with a <summary> that starts with 'Solution')"
