"""The house has floors: a file imports only from its own room and from floors below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Bottom up. A room is a file or a package directly under kdlab. The ground floor is one room; kdlab/__init__.py belongs
# to it because every import of anything in kdlab passes through it.
GROUND = {"__init__", "errors", "files", "frames", "loading", "modes", "paths", "processes", "progress", "shapes"}
FLOORS = [
    GROUND,
    {"losses", "models", "data", "pruning"},
    {"distill"},
    {"training", "detection"},
    {"yolo"},
    {"recipes"},
    {"doctor", "commands"},
    {"cli"},
    {"__main__"},
    {"classroom"},  # a chapter runs commands
]
FILES = sorted((ROOT / "kdlab").rglob("*.py"))


def modules_imported(path: Path, source: str, root: Path) -> list[str]:
    """The dotted names of all modules that the source imports anywhere in it, relative imports made absolute."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            # `from kdlab import data` imports a room; `from kdlab import check_shapes` a name of kdlab itself.
            names += [
                f"kdlab.{a.name}" if base == "kdlab" and floor_of(a.name) is not None else base for a in node.names
            ]
    return names


def floor_of(room: str) -> int | None:
    return next((number for number, floor in enumerate(FLOORS) if room in floor), None)


def violations(path: Path, source: str, root: Path = ROOT) -> list[str]:
    """What the file imports against the rules, one sentence each."""
    room = path.relative_to(root / "kdlab").with_suffix("").parts[0]
    floor = floor_of(room)
    if floor is None:
        return [f"kdlab/{room} is on no floor: add it to FLOORS"]
    wrong = []
    for module in modules_imported(path, source, root):
        top, other = [*module.split("."), "__init__"][:2]
        if top == "kdlab":
            below = (floor_of(other) or 0) < floor
            if not (below or other == room or {other, room} <= GROUND):
                wrong.append(f"{path.relative_to(root)} imports {module}, which is not below it")
        elif room == "losses" and top not in {"torch", "jaxtyping"} | sys.stdlib_module_names:
            wrong.append(f"{path.relative_to(root)} imports {module}; the losses use torch alone")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    assert violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("losses/response.py", "from kdlab.models import densenet121"),
        ("losses/response.py", "import kdlab.data.digits"),
        ("losses/response.py", "from ..training import loop"),
        ("losses/response.py", "import numpy as np"),
        ("models/classification.py", "from kdlab import losses"),
        ("distill/distiller.py", "def f():\n    from kdlab.training import loop"),
        ("training/loop.py", "from kdlab.recipes.response import recipe"),
        ("recipes/response.py", "from kdlab.classroom import figures"),
        ("cli.py", "from kdlab.classroom import figures"),
        ("errors.py", "from kdlab.data import digits"),
        ("__init__.py", "from kdlab.distill import Distiller"),
    ],
)
def test_an_import_upwards_or_sideways_is_found(file, source):
    assert len(violations(ROOT / "kdlab" / file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("losses/response.py", "import math\nimport torch.nn.functional as F\nfrom jaxtyping import Float"),
        ("losses/__init__.py", "from kdlab.losses.response import KDLoss"),
        ("losses/feature.py", "from .response import KDLoss\nfrom kdlab.errors import InputError"),
        ("data/digits.py", "import numpy\nfrom kdlab import InputError, paths"),
        ("training/loop.py", "from kdlab.distill import Distiller\nfrom kdlab.losses import KDLoss"),
        ("shapes.py", "from kdlab.errors import InputError"),
        ("cli.py", "from kdlab import doctor\nfrom kdlab.recipes import response"),
    ],
)
def test_an_import_downwards_is_fine(file, source):
    assert violations(ROOT / "kdlab" / file, source) == []


def test_a_new_room_must_be_given_a_floor():
    assert violations(ROOT / "kdlab" / "attic.py", "import torch") == ["kdlab/attic is on no floor: add it to FLOORS"]


def test_one_file_and_its_tests_alone_import_ultralytics():
    files = [*FILES, *(ROOT / "tests").rglob("*.py")]
    named = [path for path in files if "ultralytics" in path.read_text()]  # the quick half of the search
    imports = {path: modules_imported(path, path.read_text(), ROOT) for path in named}
    found = {path for path, names in imports.items() if any(name.split(".")[0] == "ultralytics" for name in names)}
    allowed = {ROOT / "kdlab/yolo.py", *(ROOT / "tests/yolo").glob("*.py")}
    assert ROOT / "kdlab/yolo.py" in found
    assert found <= allowed


def test_all_else_works_without_it():
    code = """if True:
        import sys
        sys.modules["ultralytics"] = None
        import kdlab.pruning, kdlab.detection, kdlab.recipes.detection
        from kdlab.cli import main
        main(["--help"])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: kdlab" in done.stdout


@pytest.mark.parametrize(
    ("imported", "not_wanted"),
    [
        ("kdlab.distill, kdlab.losses", {"kdlab.data", "sklearn"}),
        ("kdlab.data", {"sklearn"}),
        ("kdlab.training", {"sklearn", "torchmetrics"}),
    ],
)
def test_nobody_waits_for_what_only_some_data_or_metrics_want(imported, not_wanted):
    """To import these takes most of a second each."""
    code = f"import sys, {imported}; print(sorted({not_wanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
