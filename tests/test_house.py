"""The files that set kdlab up tell one story: the same packages, the same Python, the same targets."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]
PINNED = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in PINS}
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_constraints_are_exact_versions_from_no_particular_place():
    for pin in PINS:
        assert re.fullmatch(r"==[^*,+]+", str(pin.specifier)), f"{pin} is not one exact, public version"
        assert pin.url is None, f"{pin} names a host"
    assert len(PINNED) == len(PINS), "a package is pinned twice"


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)])
def test_every_dependency_is_pinned_within_its_range(line):
    requirement = Requirement(line)
    version = PINNED.get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement.name} is not in constraints.txt"
    assert requirement.specifier.contains(version), f"constraints.txt has {version}, pyproject.toml wants {line}"


def test_conda_makes_the_same_environment():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "kdlab"
    (python,) = (line for line in environment["dependencies"] if str(line).startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    (pip,) = (line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    assert pip == ["-c constraints.txt", "-e .[lab]"]
    assert "lab" in EXTRAS


def test_the_makefile_installs_what_the_project_offers():
    makefile = (ROOT / "Makefile").read_text()
    assert "pip install -c constraints.txt" in makefile
    installed = re.findall(r'-e "\.\[([a-z,]+)\]"', makefile)
    assert installed == ["lab", "lab,yolo,test"]
    assert set(",".join(installed).split(",")) <= set(EXTRAS)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
@pytest.mark.parametrize("arguments", [[], ["help"]])
def test_help_lists_every_target_and_is_what_plain_make_does(arguments):
    printed = subprocess.run(["make", "-s", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"help", "setup", "lab", "test", "course", "notebooks", "bench", "clean"} <= set(TARGETS)
    assert re.findall(r"^  make ([a-z-]+) +\S", printed, flags=re.MULTILINE) == TARGETS


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_an_old_python_is_refused_in_plain_words(tmp_path):
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.18"\nexit 1\n')
    old.chmod(0o755)
    make = ["make", "-s", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    run = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert f"kdlab needs Python 3.11 or newer; '{old}' is Python 3.8.18." in run.stderr
    assert not (tmp_path / "venv").exists()


@pytest.fixture
def made(tmp_path):
    """What a target prints beside the recipe, in a folder that is set up, with a script for each of these programs."""

    def make(target: str, **scripts: str) -> str:
        programs = tmp_path / "venv" / "bin"
        programs.mkdir(parents=True)
        for name, script in scripts.items():
            (programs / name.replace("_", "-")).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name.replace("_", "-")).chmod(0o755)
        for name in ("pyproject.toml", "constraints.txt", "venv/pyvenv.cfg", "venv/.lab"):
            (tmp_path / name).touch()
        path = f"{programs}:{os.environ['PATH']}"
        words = ["make", "-s", "-f", ROOT / "Makefile", target, "VENV=venv"]
        environment = os.environ | {"PATH": path, "DISPLAY": "", "WAYLAND_DISPLAY": "", "JUPYTER_NO_CONFIG": "1"}
        return subprocess.run(
            words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout  # fmt: skip

    return make


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
@pytest.mark.parametrize(("user", "machine", "on_a_server"), [(0, "Linux", True), (1000, "Darwin", False)])
def test_lab_opens_the_first_chapter_as_root_and_without_a_browser_too(made, user, machine, on_a_server):
    jupyter = f'exec "{sys.executable}" -m jupyterlab "$@" --show-config-json'
    printed = made("lab", jupyter_lab=jupyter, id=f"echo {user}", uname=f"echo {machine}")
    config = json.loads(printed[printed.index("{") :])
    folder, opened = config["ServerApp"]["root_dir"], config["LabApp"]["default_url"]
    assert (ROOT / folder / opened.removeprefix("/lab/tree/")).samefile(ROOT / "tutorials" / "00_start_here.ipynb")
    assert config["ServerApp"].get("allow_root", False) == on_a_server
    assert config["ServerApp"].get("open_browser", True) != on_a_server


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_course_executes_every_notebook_and_links_the_pages(made, tmp_path):
    (tmp_path / "tutorials").mkdir()
    for name in ("00_start", "01_next"):
        (tmp_path / "tutorials" / f"{name}.ipynb").touch()
    links = '<a href=\\"01_next.ipynb#Why\\"> <a href=\\"../README.md\\"> <a href=\\"https://a.org/02_b.ipynb\\">'
    page = f'echo "$@"; mkdir -p build/course; echo "{links}" > build/course/00_start.html'
    words = made("course", jupyter_nbconvert=page).split()
    assert {"tutorials/00_start.ipynb", "tutorials/01_next.ipynb", "--execute"} <= set(words)
    assert " ".join(words).count("--to html") == " ".join(words).count("--output-dir build/course") == 1
    (made_page,) = (tmp_path / "build" / "course").iterdir()
    assert made_page.read_text().split("<a ")[1:] == [
        'href="01_next.html#Why"> ', 'href="../../README.md"> ', 'href="https://a.org/02_b.ipynb">\n',
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["setup", "lab", "test", "test-gpu", "course", "notebooks", "docs", "bench"])
def test_the_readme_names_the_targets(target):
    assert f"make {target}" in (ROOT / "README.md").read_text()


def test_the_readme_has_the_same_lines_without_make():
    readme = (ROOT / "README.md").read_text()
    for line in ('-c constraints.txt -e ".[lab]"', '-c constraints.txt -e ".[lab,yolo,test]"', "conda env create"):
        assert line in readme, f"README.md lacks: {line}"


def test_the_library_example_of_the_readme_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *others = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    names = {}
    exec(first, names)
    assert "torch.Size([8, 1024, 1, 1])" in capsys.readouterr().out
    assert all(parameter.grad is not None for parameter in names["student"].parameters())
    assert all(parameter.grad is None for parameter in names["teacher"].parameters())
    exec("\n".join(others), names)  # they go on from it
    assert (tmp_path / "runs" / "mine" / "best.safetensors").is_file()


def test_the_readme_s_course_map_shows_what_there_is():
    chapters = {path.stem for path in (ROOT / "tutorials").glob("*.ipynb")}
    rows = re.findall(r"^\| (\[?)(\d\d_\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert {name for bracket, name in rows if bracket} == chapters


def test_the_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "not executable"
    assert script.read_text().splitlines()[-1] == "make test"
