"""The settings of chapter 06's experiment, which need no detector and no extra."""

import subprocess
import sys

import pytest

from kdlab import InputError
from kdlab.recipes.detection import DetectionRun


def test_it_can_be_read_without_the_extra():
    code = (
        "import sys; sys.modules['ultralytics'] = None; import kdlab.recipes.detection; "
        "print('kdlab.yolo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "cwd"}, "Did you mean 'CWD'"),
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
