"""Every network on another device, against the CPU in float64."""

import pytest
import torch
from on_devices import agree

from kdlab.models import (
    BUILDERS,
    KTDN,
    MSBDN,
    SRKTDN,
    DehazingTeacher,
    PSPNet,
    StudentCNN,
    UPerNet,
    VGGReader,
    VGGSlices,
    cifar_network,
    densenet121,
)

NARROW_DEHAZING = {"widths": (16, 48, 64), "blocks": (1, 1, 1), "channels": 2}
NETWORKS = {
    "StudentCNN": lambda: StudentCNN(3, (4, 8, 8, 8)),
    "densenet121": lambda: densenet121(10),
    "CIFARResNet": lambda: cifar_network("resnet8x4", 10),
    "WideResNet": lambda: cifar_network("wrn-16-2", 10),
    "CIFARVGG": lambda: cifar_network("vgg8", 10),
    "UPerNet": lambda: UPerNet(3, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), channels=8, weights="none"),
    "PSPNet": lambda: PSPNet(3, width=8, blocks=(1, 1, 1, 1), channels=8, weights="none"),
    "VGGReader": lambda: VGGReader(3, width=8),
    "MSBDN": lambda: MSBDN(2, residual=True),
    "KTDN": lambda: KTDN(**NARROW_DEHAZING, weights="none"),
    "SRKTDN": lambda: SRKTDN(**NARROW_DEHAZING, weights="none"),
    "DehazingTeacher": lambda: DehazingTeacher((16, 32, 64), (1, 1, 1), 128, 2, weights="none"),
}


def test_every_network_is_here():
    assert NETWORKS.keys() == BUILDERS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_answers_as_on_the_cpu(name, device):
    network = NETWORKS[name]().eval().double()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        reference = network(images)
        mine = network.float().to(device)(images.float().to(device))
    agree(mine, reference, device)


def maps_and_gradient(slices: VGGSlices, images: torch.Tensor) -> list[torch.Tensor]:
    maps = slices(images.requires_grad_())
    sum(one.square().mean() for one in maps).backward()
    return [*maps, images.grad]


def test_the_maps_that_images_are_compared_by_and_their_gradient_are_the_cpus(device):
    slices, images = VGGSlices("none", width=8).double(), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    there = images.float().to(device)
    reference = maps_and_gradient(slices, images)
    mine = maps_and_gradient(slices.float().to(device), there)
    for one, its in zip(mine, reference, strict=True):
        assert one.device.type == device.type
        agree(one, its, device)
