"""Reader where a network's output is all that is read; other taps are tested with what reads them."""

import pytest
import torch
from torch import nn

from kdlab import InputError
from kdlab.distill import Tap
from kdlab.distill.reader import Reader


class Watched(nn.Linear):
    """Says which hooks it had, and puts out a dictionary where it should."""

    def __init__(self, named=False):
        super().__init__(3, 2)
        self.named = named
        self.hooks = 0

    def forward(self, x):
        self.hooks += len(self._forward_hooks)
        given = super().forward(x)
        return {"logits": given} if self.named else given


def test_the_output_alone_takes_no_hook_and_no_copy():
    network, reader = Watched(), Reader([Tap(""), Tap("")])
    for _ in range(2):
        output, read = reader(network, torch.randn(4, 3))
        assert read.keys() == {""}
        assert read[""] is output
    assert network.hooks == 0
    Reader([Tap(""), Tap("", "input")])(network, torch.randn(4, 3))
    assert network.hooks == 1


def test_what_a_loss_does_with_an_outputs_dictionary_is_not_seen_by_others():
    output, read = Reader([Tap("")])(Watched(named=True), torch.randn(4, 3))
    del output["logits"]
    assert read[""]["logits"].shape == (4, 2)


def test_an_output_that_is_not_finite_is_refused_at_the_first_pass():
    network, reader = Watched(), Reader([Tap("")])
    nan = torch.full((4, 3), torch.nan)
    with pytest.raises(InputError, match="^the output of Watched holds numbers that are not finite"):
        reader(network, nan)
    reader(network, torch.randn(4, 3))
    assert reader(network, nan)[0].isnan().all()  # no look at every step
    with torch.inference_mode(), pytest.raises(InputError, match="not finite"):
        Reader([Tap("")])(network, nan)
    reader.forget()
    with pytest.raises(InputError, match="not finite"):
        reader(network, nan)


def test_each_mode_has_a_first_pass_of_its_own():
    network, reader = Watched().train(), Reader([Tap("", "input"), Tap("")])
    reader(network, torch.randn(4, 3))
    with pytest.raises(InputError, match="not finite"):
        reader(network.eval(), torch.full((4, 3), torch.nan))


def test_a_nested_tensor_is_named_with_what_to_do():
    class Nesting(nn.Module):
        def forward(self, x):
            return torch.nested.as_nested_tensor(list(x))

    with pytest.raises(InputError, match="the output of Nesting holds a nested tensor.*enable_nested_tensor=False"):
        Reader([Tap("")])(Nesting(), torch.randn(4, 3))
