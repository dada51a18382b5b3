"""The reference: made of the docstrings without a warning, with all that the packages offer in it."""

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

# kdlab.yolo is in it. Importing ultralytics here would change what opens an image, for all tests.
pytestmark = pytest.mark.skipif(find_spec("ultralytics") is None, reason="ultralytics is not installed")

DOCS = Path(__file__).parents[1] / "docs"
ROOMS = ["data", "detection", "distill", "losses", "models", "pruning", "training"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference")
    words = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-b", "html"]
    run = subprocess.run([*words, str(DOCS), str(out)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return InventoryFile.loads((out / "objects.inv").read_bytes(), uri="")


@pytest.mark.parametrize("package", ["kdlab", *(f"kdlab.{room}" for room in ROOMS)])
def test_what_a_package_offers_is_in_the_reference(reference, package):
    module = import_module(package)
    offered = [name for name in module.__all__ if callable(getattr(module, name))]
    known = {name for kind in ("py:class", "py:exception", "py:function") for name in reference.data.get(kind, {})}
    assert not {f"{package}.{name}" for name in offered} - known
