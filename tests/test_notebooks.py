"""Every committed notebook passes the linter, and every rule of the linter is seen to fire."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_linter import LARGEST, SECTIONS, lint

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))

TITLE = "# Softened answers\n\nYou will be able to soften.\n\n**Minutes**: 5 · **Prerequisites**: none"
HINTS = "".join(f"<details><summary>Hint {n}</summary>\n\nadd\n\n</details>\n\n" for n in (1, 2))
SOLUTION = "<details><summary>Solution</summary>\n\n```python\n1 + 1\n```\n\n</details>"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_committed_notebook_keeps_the_rules(path):
    assert lint(path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_a_committed_notebook_imports_is_there(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    imports = [node for cell in cells for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.ImportFrom)]
    own = [node for node in imports if node.module.startswith("kdlab.") and node.module != "kdlab.yolo"]  # an extra
    assert own
    exec(compile(ast.Module(own, type_ignores=[]), path.name, "exec"), {})


def test_the_course_has_its_chapters():
    names = [
        "00_start_here", "01_response_distillation", "02_taps_and_connectors", "03_the_loss_zoo",
        "04_channel_wise_distillation", "05_masked_generative_distillation", "06_prune_and_distil_yolov8",
        "07_weather_and_teachers", "08_knowledge_collation", "09_knowledge_examination",
        "10_dehazing_srktdn", "11_scaling_up",
    ]  # fmt: skip
    assert [path.stem for path in NOTEBOOKS] == names


def markdown(source):
    return new_markdown_cell(source)


def code(source="1 + 1", *outputs):
    return new_code_cell(source, outputs=list(outputs))


def display(data, **metadata):
    return new_output("display_data", data=data, metadata=metadata)


def chapter():
    """The smallest chapter that keeps every rule."""
    cells = [markdown(TITLE), code()]
    for section in SECTIONS:
        cells += [markdown(f"## {section}: the part"), code()]
        if section == "Exercises":
            cells += [markdown("### Exercise 1"), code("answer = 0"), markdown(HINTS), markdown(SOLUTION)]
    return notebook(cells)


def notebook(cells):
    made = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    number_cells(made)
    return made


def number_cells(made):
    codes = [cell for cell in made.cells if cell.cell_type == "code"]
    for number, cell in enumerate(codes, start=1):
        cell.execution_count = number


def lint_as(made, folder, name="01_response.ipynb"):
    nbformat.write(made, folder / name)
    return lint(folder / name)


def test_a_good_chapter_has_no_faults(tmp_path):
    assert lint_as(chapter(), tmp_path) == []


def test_chapter_00_needs_no_sections_but_keeps_every_other_rule(tmp_path):
    assert lint_as(notebook([markdown(TITLE), code()]), tmp_path, "00_start_here.ipynb") == []
    faults = lint_as(notebook([markdown(TITLE), code("import urllib.request")]), tmp_path, "00_start_here.ipynb")
    assert faults == ["cell 2 goes to the network: 'import urllib'"]


PNG = {"image/png": "iVBORw0KGgo="}
FINE = {
    "an image output with alt text": code("plot()", display(PNG, **{"image/png": {"alt": "accuracy rises with T"}})),
    "an HTML image output with alt text": code("plot()", display({"text/html": '<img src="data:," alt="a curve">'})),
    "a markdown image with alt text": markdown("![a curve](picture.png)"),
    "a link to a file": markdown("[the picture](picture.png#top), [there](https://example.org), [below](#Summary)"),
    "a link to a file with a space": markdown("[two](two%20words.txt)"),
    "brackets in mathematics and code": markdown("$f[i](x)$ and `a[i](missing.txt)`\n\n```\n![](missing.png)\n```"),
    "stars in mathematics and code": markdown("$a*b*c$, $$d*e*f$$ and `2*3*4`, **not** *here*"),
    "a long cell that says why": code("# long: one table\n" + "a = 1\n" * 40),
    "comments and blank lines": code("# note\n\n" * 40 + "a = 1"),
    "a word that only looks like the network": code("requests_served = 3\nload(download=False)"),
    "standard output": code("print(1)", new_output("stream", name="stdout", text="1\n")),
    "a heading inside a section": markdown("### Look twice"),
}


@pytest.mark.parametrize("cell", FINE.values(), ids=FINE)
def test_what_is_fine_is_left_alone(cell, tmp_path):
    (tmp_path / "picture.png").touch()
    (tmp_path / "two words.txt").touch()
    made = chapter()
    made.cells.append(cell)
    number_cells(made)
    assert lint_as(made, tmp_path) == []


BAD_CELLS = {
    "image output": (code("plot()", display(PNG)), "output has an image without alt text (image/png)"),
    "empty alt": (code("plot()", display(PNG, **{"image/png": {"alt": " "}})), "image without alt text"),
    "svg output": (code("plot()", display({"image/svg+xml": "<svg/>"})), "image without alt text (image/svg+xml)"),
    "html output": (code("plot()", display({"text/html": '<p><img src="data:,"></p>'})), "image without alt text"),
    "markdown image": (markdown("![](data:,)"), "has an image without alt text"),
    "html image": (markdown('<img src="data:,">'), "has an image without alt text"),
    "broken link": (markdown("[notes](notes.md)"), "links to notes.md, which is not there"),
    "broken reference": (markdown("[notes][1]\n\n[1]: ../notes.md"), "links to ../notes.md, which is not there"),
    "broken image": (markdown("![a curve](curve.png)"), "links to curve.png, which is not there"),
    "broken html link": (markdown('<a href="notes.md">notes</a>'), "links to notes.md, which is not there"),
    "url": (code("get('https://example.org')"), "goes to the network: 'https://'"),
    "urllib": (code("from urllib import request"), "goes to the network: 'from urllib'"),
    "requests": (code("import requests"), "goes to the network: 'import requests'"),
    "download": (code("MNIST('.', download = True)"), "goes to the network: 'download = True'"),
    "pip": (code("%pip install torch"), "goes to the network: 'pip install'"),
    "error": (code("1 / 0", new_output("error", ename="ZeroDivisionError", evalue="")), "ends in an error: ZeroDiv"),
    "stderr": (code("warn()", new_output("stream", name="stderr", text="careful\n")), "writes to stderr: 'careful'"),
    "code inside HTML": (markdown("<p>call `exp`</p>"), "shows its marks to the reader: '`exp`'"),
    "emphasis inside HTML": (markdown("<p>of *all* images</p>"), "shows its marks to the reader: '*all*'"),
    "a path": (
        code("doctor()", new_output("stream", name="stdout", text="Cache /home/me/cache: 1 GB\n")),
        "prints a path of the machine that it was executed on: '/home/me/cache:'",
    ),
    "long": (code("a = 1\n" * 26), "has 26 lines of code; at most 25"),
    "long without a reason": (code("# long:\n" + "a = 1\n" * 26), "has 26 lines of code; at most 25"),
}


@pytest.mark.parametrize(("cell", "fault"), BAD_CELLS.values(), ids=BAD_CELLS)
def test_a_bad_cell_is_found(cell, fault, tmp_path):
    made = chapter()
    made.cells.append(cell)
    number_cells(made)
    (found,) = lint_as(made, tmp_path)
    assert f"cell {len(made.cells)}" in found
    assert fault in found


def test_an_unexecuted_cell_is_found(tmp_path):
    made = chapter()
    made.cells[3].execution_count = None
    assert lint_as(made, tmp_path) == ["cell 4 is not executed"]


def test_cells_executed_out_of_order_are_found(tmp_path):
    made = chapter()
    made.cells[1].execution_count, made.cells[3].execution_count = 2, 1
    assert lint_as(made, tmp_path) == [
        "cell 2 was executed as number 2; wanted 1",
        "cell 4 was executed as number 1; wanted 2",
    ]


def test_widget_state_and_another_kernel_are_found(tmp_path):
    made = chapter()
    made.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {}}
    made.metadata.kernelspec.name = "my-env"
    widgets, kernel = lint_as(made, tmp_path)
    assert "widget state" in widgets
    assert kernel == "the kernel is 'my-env'; wanted 'python3'"


def test_a_large_file_is_found(tmp_path):
    made = chapter()
    made.cells[1].outputs = [display({"text/plain": "x" * LARGEST})]
    (fault,) = lint_as(made, tmp_path)
    assert "at most 1,000,000" in fault


@pytest.mark.parametrize("text", ["", "no JSON", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}'])
def test_what_is_no_notebook_is_found(text, tmp_path):
    (tmp_path / "01_bad.ipynb").write_text(text)
    (fault,) = lint(tmp_path / "01_bad.ipynb")
    assert fault.startswith("no valid notebook: ")


def test_many_middling_cells_are_found(tmp_path):
    made = notebook([markdown(TITLE), *(code("a = 1\n" * 9) for _ in range(5))])
    assert lint_as(made, tmp_path, "00_start_here.ipynb") == ["the median code cell has 9 lines; at most 8"]


@pytest.mark.parametrize("words", ["You will be able to", "Minutes", "Prerequisites"])
def test_an_opening_without_its_words_is_found(words, tmp_path):
    made = chapter()
    made.cells[0].source = TITLE.replace(words, "")
    assert lint_as(made, tmp_path) == [f"the first cell lacks {words!r}"]


@pytest.mark.parametrize("cells", [[], [code()], [markdown("## Not a title")]])
def test_a_notebook_without_a_title_is_found(cells, tmp_path):
    (fault,) = lint_as(notebook(cells), tmp_path, "00_start_here.ipynb")
    assert "the first cell is no title" in fault


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_found(section, tmp_path):
    made = chapter()
    made.cells = [cell for cell in made.cells if not cell.source.startswith(f"## {section}")]
    number_cells(made)
    (fault,) = lint_as(made, tmp_path)
    assert f"section {section!r} is missing or out of order" in fault


def test_sections_out_of_order_are_found(tmp_path):
    made = chapter()
    why, predict = (next(c for c in made.cells if c.source.startswith(f"## {name}")) for name in ("Why", "Predict"))
    why.source, predict.source = predict.source, why.source
    (fault,) = lint_as(made, tmp_path)
    assert "section 'Predict' is missing or out of order" in fault


@pytest.mark.parametrize(
    "solution",
    [
        "The answer is 2.",
        "<details><summary>Remark</summary>\n\nadd\n\n</details>",
        "<details open><summary>Solution</summary>\n\n2\n\n</details>",
        f"### Exercise 2\n\n{HINTS}{SOLUTION}",
        f"## Elsewhere\n\n{SOLUTION}",
    ],
    ids=["no fold", "another fold", "not folded", "another exercise's", "after the exercise"],
)
def test_an_exercise_without_a_folded_solution_is_found(solution, tmp_path):
    made = chapter()
    next(cell for cell in made.cells if cell.source == SOLUTION).source = solution
    (fault,) = lint_as(made, tmp_path)
    assert "'Exercise 1' has no folded solution" in fault


@pytest.mark.parametrize(
    ("hints", "found"),
    [("", 0), (HINTS[: len(HINTS) // 2], 1), (HINTS.replace("<details>", "<details open>"), 0), (2 * HINTS, 4)],
    ids=["none", "one", "not folded", "four"],
)
def test_an_exercise_without_two_folded_hints_is_found(hints, found, tmp_path):
    made = chapter()
    next(cell for cell in made.cells if cell.source == HINTS).source = hints
    (fault,) = lint_as(made, tmp_path)
    assert f"'Exercise 1' has {found} folded hints before its solution; wanted two" in fault


def test_hints_after_the_solution_come_too_late(tmp_path):
    made = chapter()
    hints, solution = (next(cell for cell in made.cells if cell.source == text) for text in (HINTS, SOLUTION))
    hints.source, solution.source = SOLUTION, HINTS
    (fault,) = lint_as(made, tmp_path)
    assert "has 0 folded hints before its solution" in fault


def test_a_chapter_without_exercises_is_found(tmp_path):
    made = chapter()
    next(cell for cell in made.cells if cell.source == "### Exercise 1").source = "Try it."
    assert lint_as(made, tmp_path) == ["there is no exercise (a heading that starts with 'Exercise')"]
