"""The networks of CIFAR-100's tables: as large as published, and read where the feature losses read them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlab import InputError
from kdlab.distill import Tap, Taps
from kdlab.models import CIFARVGG, CIFARResNet, WideResNet, build_model, cifar_network
from kdlab.models.cifar import NETWORKS
from kdlab.models.resnet import ResNetEncoder
from kdlab.models.vgg import VGGSlices

PARAMETERS = {
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "resnet20": 278_324,
    "resnet56": 861_620,
    "wrn-16-2": 703_284,
    "wrn-40-2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
}
STAGES = {
    "resnet8x4": [(64, 32), (128, 16), (256, 8)],
    "resnet32x4": [(64, 32), (128, 16), (256, 8)],
    "resnet20": [(16, 32), (32, 16), (64, 8)],
    "resnet56": [(16, 32), (32, 16), (64, 8)],
    "wrn-16-2": [(32, 32), (64, 16), (128, 8)],
    "wrn-40-2": [(32, 32), (64, 16), (128, 8)],
    "vgg8": [(128, 16), (256, 8), (512, 4), (512, 4)],
    "vgg13": [(128, 16), (256, 8), (512, 4), (512, 4)],
}
# Before the ReLU of a stage's map, and what its map is after it.
BEFORE_RELU = {
    "resnet8x4": (Tap("stages.1.0.relu", "input", call=1), "stages.1"),
    "resnet20": (Tap("stages.1.2.relu", "input", call=1), "stages.1"),
    "wrn-16-2": ("stages.2.2", "stages.2"),
    "vgg8": ("stages.0.2", "stages.0"),
    "vgg13": ("stages.3.4", "stages.3"),
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_the_published_number_of_parameters(name, count):
    assert sum(parameter.numel() for parameter in cifar_network(name).parameters()) == count


def test_every_network_is_counted():
    assert PARAMETERS.keys() == STAGES.keys() == NETWORKS.keys()


@pytest.mark.parametrize(
    "build",
    [
        *(lambda name=name: cifar_network(name) for name in ("resnet8x4", "wrn-16-2", "vgg8")),
        lambda: ResNetEncoder(32, (1, 1, 1, 1)), lambda: VGGSlices("none", width=16),
    ],
    ids=["resnet8x4", "wrn-16-2", "vgg8", "encoder", "slices"],
)  # fmt: skip
def test_all_convolutions_start_as_torchvisions_resnet_does(build):
    for layer in build().modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


@pytest.mark.parametrize(("name", "stages"), STAGES.items())
def test_stages_embedding_and_logits_are_read_by_the_same_names_in_all(name, stages):
    network = cifar_network(name).eval()
    maps = [f"stages.{index}" for index in range(len(stages))]
    embedding = Tap("classifier", "input")
    with torch.no_grad(), Taps(network, [*maps, embedding, "classifier"]) as taps:
        logits = network(torch.randn(2, 3, 32, 32))
    assert [tuple(taps[one].shape) for one in maps] == [(2, c, side, side) for c, side in stages]
    assert network.channels == tuple(c for c, _ in stages)
    torch.testing.assert_close(taps[embedding], taps[maps[-1]].mean(dim=(2, 3)))
    assert torch.equal(taps["classifier"], logits)
    assert logits.shape == (2, 100)


@pytest.mark.parametrize(("name", "taps"), BEFORE_RELU.items())
def test_the_map_before_the_relu_is_read_where_the_docstring_says(name, taps):
    network = cifar_network(name).eval()
    before, after = taps
    with torch.no_grad(), Taps(network, taps) as read:
        network(torch.randn(2, 3, 32, 32))
    assert (read[before] < 0).any()
    assert torch.equal(F.relu(read[before]), read[after])


def test_a_wide_network_normalises_the_sum_of_a_stage_in_the_next():
    network = cifar_network("wrn-16-2").eval()
    with torch.no_grad(), Taps(network, ["stages.0", Tap("stages.1.0.norm1", "input")]) as read:
        network(torch.randn(2, 3, 32, 32))
    assert torch.equal(read["stages.0"], read[Tap("stages.1.0.norm1", "input")])
    assert (read["stages.0"] < 0).any()


@pytest.mark.parametrize("build", [lambda: CIFARResNet(8, (4, 4, 8, 8), 3), lambda: WideResNet(10, 1, 3)])
def test_a_block_whose_convolutions_are_zero_passes_its_input_on(build):
    network = build().eval()
    block = network.stages[0][0]
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d) and layer is not getattr(block, "shortcut", None):
            nn.init.zeros_(layer.weight)
    with torch.no_grad(), Taps(network, ["stem", "stages.0"]) as read:
        network(torch.randn(2, 3, 8, 8))
    torch.testing.assert_close(read["stages.0"], read["stem"])


@torch.no_grad()
def test_a_wide_block_that_changes_the_map_shortcuts_what_it_has_activated():
    block, maps = WideResNet(10, 1).eval().stages[1][0], torch.randn(2, 16, 8, 8)
    active = F.relu(block.norm1(maps))
    change = block.conv2(F.relu(block.norm2(block.conv1(active))))
    torch.testing.assert_close(block(maps), change + block.shortcut(active))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoints_architecture_builds_it_again(name):
    network = cifar_network(name, classes=7)
    again = build_model(network.architecture)
    assert repr(again) == repr(network)
    assert again.architecture == network.architecture
    again.load_state_dict(network.state_dict())


REFUSED = {
    "an unknown network": (lambda: cifar_network("resnet8x"), "unknown network 'resnet8x'. Did you mean 'resnet8x4'"),
    "one class": (lambda: cifar_network("vgg8", 1), "classes is 1; a classifier needs at least 2"),
    "a depth of 9": (lambda: CIFARResNet(9, (4, 4, 4, 4)), r"depth is 9; wanted: 6 n \+ 2 with n from 1 up, such as 8"),
    "no block": (lambda: WideResNet(4, 2), r"depth is 4; wanted: 6 n \+ 4"),
    "three widths": (lambda: CIFARResNet(8, (4, 4, 4)), r"widths is \(4, 4, 4\); wanted: the channels of the stem"),
    "no width": (lambda: WideResNet(10, 0), "width is 0; wanted: a whole number from 1 up"),
    "no convolution": (lambda: CIFARVGG(0), "convolutions is 0; wanted: a whole number from 1 up"),
}


@pytest.mark.parametrize(("build", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_built_is_refused(build, said):
    with pytest.raises(InputError, match=said):
        build()
