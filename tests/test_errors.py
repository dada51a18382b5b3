"""What is said of an error that others raise."""

import pytest

from kdlab.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA error\nDebug with"), "CUDA error"),
        (RuntimeError("\n  sizes differ\n"), "sizes differ"),
        (RuntimeError(), "RuntimeError"),
        (MemoryError(" \n"), "MemoryError"),
    ],
)
def test_the_first_line_or_else_the_kind_of_error(error, said):
    assert first_line(error) == said
