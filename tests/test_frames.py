"""Room for frames: a function's calls stay in one piece of Python's stack, and nothing else about it changes."""

import inspect
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab.frames import with_room_for_frames
from kdlab.training import Supervised, fit

resource = pytest.importorskip("resource", reason="page faults are counted on Linux and macOS alone")
LOADER = DataLoader(TensorDataset(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long)))
CALLS, DEEP = 2_000, 150  # a piece of the stack ends within so many frames


def nothing():
    pass


def loop():
    """Calls in a loop, as a training makes them, and the fresh pages that they took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(CALLS):
        nothing()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def deeper(frames, function):
    return deeper(frames - 1, function) if frames else function()


def at_the_worst_depth(function):
    return max(deeper(frames, function) for frames in range(DEEP))


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="later versions of Python keep an empty piece")
def test_a_loop_at_the_end_of_a_piece_takes_a_fresh_page_at_each_call():
    assert at_the_worst_depth(loop) > 0.9 * CALLS


def test_with_room_no_depth_does():
    assert at_the_worst_depth(with_room_for_frames(loop)) < 0.1 * CALLS


def test_the_training_loop_has_room():
    def train():
        faults = []
        student = nn.Linear(1, 2)
        adam = torch.optim.Adam(student.parameters())
        fit(
            Supervised(student, nn.CrossEntropyLoss()), LOADER, epochs=1, optimizer=adam,
            evaluate=lambda _: {"accuracy": faults.append(loop()) or 0.0},
        )  # fmt: skip
        return faults[0]

    assert at_the_worst_depth(train) < 0.1 * CALLS


def test_arguments_result_name_and_signature_pass_through():
    def share(of, *, whole=1.0):
        """Of the whole."""
        return of / whole

    roomy = with_room_for_frames(share)
    assert roomy(1, whole=4) == 0.25
    assert (roomy.__name__, roomy.__doc__) == ("share", "Of the whole.")
    assert inspect.signature(roomy) == inspect.signature(share)


def test_an_error_passes_through_with_its_traceback():
    def divide():
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        with_room_for_frames(divide)()
    assert [entry.name for entry in caught.traceback][-2:] == ["call", "divide"]


def test_it_may_call_itself():
    @with_room_for_frames
    def factorial(n):
        return n * factorial(n - 1) if n else 1

    assert factorial(50) > 1e64
