"""The settings of chapter 06's experiment, which need no detector and no extra."""

import ast
import inspect

import pytest

from kdlab import InputError
from kdlab.recipes import detection
from kdlab.recipes.detection import DetectionRun


def test_it_can_be_read_without_the_extra():
    imports = [node for node in ast.parse(inspect.getsource(detection)).body if isinstance(node, ast.ImportFrom)]
    assert imports
    assert not [node for node in imports for alias in node.names if alias.name == "yolo" or node.module == "kdlab.yolo"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "fine tuned"}, "Did you mean 'fine-tuned'"),
        ({"weight": -1.0}, "weight is -1"),
        ({"keep": 0.0}, "keep is 0.0; wanted: the fraction"),
        ({"keep": 1.1}, "keep is 1.1"),
        ({"epochs": 0}, "'CWD' with 0 epochs"),
        ({"method": "pruned"}, "'pruned' with 20 epochs; wanted: 0 for dense and pruned"),
    ],
)
def test_impossible_settings_are_named(options, sentence):
    with pytest.raises(InputError, match=sentence):
        DetectionRun(**{"method": "CWD", "weight": 1.0, "seed": 0} | options)
