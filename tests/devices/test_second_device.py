"""All of this folder on the second device, and that this device is one."""

from pathlib import Path

import pytest
import torch
from on_devices import IN_ITS_OWN_PROCESS, ON_SECOND, passes_on_the_second_device
from second_device import NAME, second_device


@IN_ITS_OWN_PROCESS
def test_all_of_this_holds_where_nothing_may_stay_on_the_cpu():
    passes_on_the_second_device(Path(__file__).parent)


@pytest.mark.skipif(not ON_SECOND, reason="in a process of its own: see the test above")
def test_the_second_device_keeps_its_tensors_apart():
    with second_device() as second:
        there, here = torch.ones(3, device=second), torch.ones(3)
        assert (there.device.type, there.cpu().tolist()) == (NAME, [1.0, 1.0, 1.0])
        assert (there * 2 + torch.tensor(1.0)).device == second  # a single number may come from anywhere
        assert there[torch.tensor([0, 2])].device == second  # and so may an index
        draw = torch.Generator()
        for compute in (lambda: there + here, lambda: here[there.long()], lambda: there.normal_(generator=draw)):
            with pytest.raises(RuntimeError, match=r"Expected .* device"):
                compute()
        with pytest.raises(RuntimeError):
            there.numpy()
        assert there.tolist() == [1.0, 1.0, 1.0]
