"""The command line in this process, as the tests of its tasks drive it."""

import io
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

from kdlab.cli import main


def run(*words: object) -> SimpleNamespace:
    """One command in this process: its exit status and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:  # argparse's way to refuse
            status = end.code
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


def done(*words: object) -> str:
    """The output of a command that has to succeed."""
    result = run(*words)
    assert (result.status, result.err) == (0, "")
    return result.out


def refused(*words: object) -> str:
    """The message of a command that has to be refused, on one line, with nothing on stdout."""
    result = run(*words)
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("kdlab: ")
    return " ".join(result.err.split())
