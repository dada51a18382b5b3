"""The dehazing networks: the published sizes, part by part, and images of every size."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdlab import InputError
from kdlab.distill import Taps
from kdlab.models import KTDN, SRKTDN, DehazingTeacher, Restorer, build_model
from kdlab.models.dehazing import (
    AttentionBlock,
    Bottom,
    ChannelAttention,
    Enhancer,
    PixelAttention,
    Res2NetEncoder,
    SuperResolution,
    Tail,
    WideBlock,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NARROW = {"widths": (64, 96, 128), "blocks": (1, 1, 1), "channels": 8}
NARROW_TEACHER = {"widths": (16, 32, 64), "blocks": (1, 1, 1), "middle": 128, "channels": 8}
SMALL = {
    "DehazingTeacher": lambda **more: DehazingTeacher(**NARROW_TEACHER | more),
    "KTDN": lambda **more: KTDN(**NARROW | more),
    "SRKTDN": lambda **more: SRKTDN(**NARROW | {"inside": 4} | more),
}
EACH = pytest.mark.parametrize("build", SMALL.values(), ids=SMALL)


def count(module):
    return sum(p.numel() for p in module.parameters())


def worked(network):
    """GFLOPs, and the map at the tap."""
    with FlopCounterMode(display=False) as counter, Taps(network, [network.TAP]) as taps:
        network(torch.empty(1, 3, 256, 256, device="meta"))
    return counter.get_total_flops() / 1e9, taps[network.TAP]


@pytest.fixture(scope="module")
def published():
    """By name; without memory for their weights."""
    with torch.device("meta"):
        return {kind.__name__: kind().eval() for kind in (DehazingTeacher, KTDN, SRKTDN)}


# --- the published sizes ---------------------------------------------------------------------------------------------


def test_the_parameters_are_the_published_networks_part_by_part(published):
    teacher, plain, student = published.values()
    assert (count(teacher), count(plain), count(student)) == (26_067_534, 49_351_730, 49_483_458)
    assert count(student.encoder) == count(plain.encoder) == 28_178_616
    assert count(student.encoder.conv1) + count(student.encoder.bn1) == 28_640 + 128
    stages = [count(stage) for stage in (student.encoder.layer1, student.encoder.layer2, student.encoder.layer3)]
    assert stages == [214_056, 1_229_856, 26_705_936]
    assert count(student.middle) == count(teacher.middle) == 19_271_041
    assert [count(part) for part in student.up] == [1_205_089, 678_025]
    assert [count(part) for part in teacher.up] == [1_205_089, 169_669]
    assert count(student.details) == 131_140
    assert [count(part) for part in student.details.modules() if isinstance(part, WideBlock)] == [18_672] * 3
    assert student.tail[1].in_channels == 32
    assert plain.tail[1].in_channels == teacher.tail[1].in_channels == 28


def test_the_work_and_the_taps_at_the_published_crop(published):
    work = {name: worked(network) for name, network in published.items()}
    assert {name: round(gflops, 1) for name, (gflops, _) in work.items()} == {
        "DehazingTeacher": 20.6, "KTDN": 39.6, "SRKTDN": 40.8,
    }  # fmt: skip
    assert {tap.shape for _, tap in work.values()} == {(1, 1024, 16, 16)}  # no connector is needed


def test_without_its_way_up_the_teacher_does_seven_tenths_of_its_work(published):
    teacher = published["DehazingTeacher"]
    with FlopCounterMode(display=False) as counter:
        teacher.middle(teacher.bottom(teacher.encoder(torch.empty(1, 3, 256, 256, device="meta"))[-1]))
    assert round(counter.get_total_flops() / 1e9, 1) == 14.7


def test_the_encoders_halve_the_size_from_a_quarter_on(published):
    sizes = {
        name: [tuple(one.shape[1:]) for one in network.encoder(torch.empty(1, 3, 64, 96, device="meta"))]
        for name, network in published.items()
    }
    assert sizes["SRKTDN"] == sizes["KTDN"] == [(256, 16, 24), (512, 8, 12), (1024, 4, 6)]
    assert sizes["DehazingTeacher"] == [(64, 16, 24), (128, 8, 12), (256, 4, 6)]


def test_narrow_networks_are_for_a_cpu():
    assert all(count(build()) < 1_000_000 for build in SMALL.values())


@torch.no_grad()
def test_the_teachers_encoder_is_torchvisions_resnet():
    theirs = torchvision.models.resnet18().eval()
    teacher = DehazingTeacher().eval()
    teacher.encoder.load_imagenet(theirs.state_dict())
    images = torch.rand(1, 3, 64, 48)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    for stage, mine in zip((theirs.layer1, theirs.layer2, theirs.layer3), teacher.encoder(images), strict=True):
        x = stage(x)
        torch.testing.assert_close(mine, x)


@torch.no_grad()
def test_res2nets_blocks_add_each_split_to_the_next_but_for_the_first_block_of_a_stage():
    stage = Res2NetEncoder((32, 32, 32), (2, 1, 1)).eval().layer1
    for block, accumulates in zip(stage, (False, True), strict=True):
        x = torch.randn(1, block.conv1.in_channels, 5, 5)
        splits = block.bn1(block.conv1(x)).relu().chunk(4, dim=1)
        made = []
        for split, convolution, norm in zip(splits, block.convs, block.bns, strict=False):
            made.append(norm(convolution(split + made[-1] if made and accumulates else split)).relu())
        last = splits[3] if accumulates else F.avg_pool2d(splits[3], 3, 1, 1)
        shortcut = x if block.downsample is None else block.downsample(x)
        expected = (block.bn3(block.conv3(torch.cat([*made, last], dim=1))) + shortcut).relu()
        torch.testing.assert_close(block(x), expected)


# --- the blocks, step by step ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_attention_weighs_channels_and_positions_from_0_to_1():
    x = torch.randn(2, 16, 5, 7)
    channels, pixels = (attention(x) / x for attention in (ChannelAttention(16), PixelAttention(16)))
    for weights, alike in ((channels, (2, 3)), (pixels, (1,))):
        assert weights.min() > 0
        assert weights.max() < 1
        torch.testing.assert_close(weights.amax(alike), weights.amin(alike))
    torch.testing.assert_close(ChannelAttention(16)(torch.zeros(1, 16, 2, 2)), torch.zeros(1, 16, 2, 2))


@torch.no_grad()
def test_an_attention_block_adds_its_input_twice():
    block, x = AttentionBlock(8), torch.randn(1, 8, 6, 6)
    r = F.relu(block.conv1(x)) + x
    channel, pixel = block.attention
    torch.testing.assert_close(block(x), pixel(channel(block.conv2(r))) + x)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    assert torch.equal(block(x), x)


@torch.no_grad()
def test_the_bottom_is_a_normalised_residual_block():
    bottom, x = Bottom(4, 12), torch.randn(2, 4, 3, 5)
    first, _, _, second, _ = bottom.body
    r = F.instance_norm(second(F.instance_norm(first(x)).relu()))
    torch.testing.assert_close(bottom(x), bottom.widen(x + r))


@torch.no_grad()
def test_the_enhancer_sees_means_over_32_16_8_and_4_pixels():
    enhancer, x = Enhancer(3, 5), torch.randn(1, 3, 64, 32)
    d = enhancer.body(x)
    parts = []
    for k, level in zip((32, 16, 8, 4), enhancer.levels, strict=True):
        means = d.unfold(2, k, k).unfold(3, k, k).mean(dim=(4, 5))
        parts.append(level(means).repeat_interleave(k, 2).repeat_interleave(k, 3))
    torch.testing.assert_close(enhancer(x), enhancer.fusion(torch.cat([*parts, d], dim=1)).tanh())


@torch.no_grad()
def test_the_super_resolution_branch_folds_four_by_four_pixels():
    branch = SuperResolution(4).eval()
    seen = []
    branch.body.register_forward_hook(lambda module, given, result: seen.append((given[0], result)))
    images = torch.rand(1, 3, 32, 48)
    assert branch(images).shape == (1, 4, 32, 48)
    folded, unfolded = seen[0]
    assert folded.shape == unfolded.shape == (1, 64, 8, 12)
    whole = branch.before(images)
    torch.testing.assert_close(folded[0, 16 + 4 * 2 + 3], whole[0, 1, 2::4, 3::4])  # channel 1, row 2, column 3
    torch.testing.assert_close(F.pixel_shuffle(folded, 4), whole)


@torch.no_grad()
def test_a_wide_block_adds_a_fifth_of_its_body():
    block, x = WideBlock(4).eval(), torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(block(x), x + block.body(x) / 5)


@torch.no_grad()
def test_the_tail_reflects_at_the_border():
    tail, x = Tail(4), torch.randn(1, 4, 9, 8)
    torch.testing.assert_close(
        tail(x), F.conv2d(F.pad(x, (3,) * 4, mode="reflect"), tail[1].weight, tail[1].bias).tanh()
    )


# --- whole networks --------------------------------------------------------------------------------------------------


@EACH
@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 48), (33, 40), (100, 17), (2, 3), (5, 5)])
def test_the_output_has_the_size_of_the_input_and_is_a_tanh(build, size):
    network = build().eval()
    restored = network(torch.rand(2, 3, *size))
    assert restored.shape == (2, 3, *size)
    assert restored.abs().max() <= 1
    assert isinstance(network, Restorer)


@EACH
@torch.no_grad()
def test_padding_is_reflection_that_is_cropped_again(build):
    network, images = build().eval(), torch.rand(1, 3, 41, 60)
    by_hand = network(F.pad(images, (0, 4, 0, 7), mode="reflect"))[:, :, :41, :60]
    torch.testing.assert_close(network(images), by_hand)


@EACH
@torch.no_grad()
def test_each_image_is_restored_by_itself(build):
    network, images = build().eval(), torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), rtol=1e-4, atol=1e-5)


@EACH
def test_every_parameter_is_used(build):
    network = build()
    network(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


@EACH
@torch.no_grad()
def test_the_encoder_sees_normalised_images_where_asked_to_and_the_branch_never_does(build):
    plain, normalising = (build(normalise=normalise).eval() for normalise in (False, True))
    normalising.load_state_dict(plain.state_dict())
    seen = []
    for network in (plain, normalising):
        parts = [part for part in (network.encoder, network.details) if part is not None]
        for part in parts:
            part.register_forward_hook(lambda module, given, result: seen.append(given[0]))
        network(images := torch.rand(1, 3, 32, 32))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        torch.testing.assert_close(seen[0], (images - mean) / std if network.normalise else images)
        assert len(seen) == len(parts)
        assert all(torch.equal(one, images) for one in seen[1:])
        seen.clear()


@EACH
@torch.no_grad()
def test_a_saved_description_builds_the_same_network(build):
    network = build(normalise=True).eval()
    again = build_model(network.architecture).eval()
    assert type(again) is type(network)
    assert again.architecture == network.architecture
    again.load_state_dict(network.state_dict())
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(images), network(images))


# --- what is refused -------------------------------------------------------------------------------------------------


@EACH
def test_what_is_no_rgb_image_is_named(build, shapes_unchecked):
    network = build().eval()
    with pytest.raises(InputError, match=r"images are \(1, 1, 32, 32\); wanted: \(n, 3, h, w\).*grey.*three equal"):
        network(torch.rand(1, 1, 32, 32))
    with pytest.raises(InputError, match=r"images are \(3, 32, 32\)"):
        network(torch.rand(3, 32, 32))
    with pytest.raises(InputError, match="images are 1 high and 20 wide; wanted: at least 2x2"):
        network(torch.rand(1, 3, 1, 20))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: KTDN((32, 64)), r"widths are \(32, 64\).*wanted: three widths"),
        (lambda: KTDN(()), r"widths are \(\)"),
        (lambda: KTDN(blocks=(3, 4, 0)), r"blocks \(3, 4, 0\)"),
        (lambda: KTDN(channels=0), "channels 0"),
        (lambda: KTDN((8, 16, 32)), r"widths are \(8, 16, 32\).*multiples of 8, at least 16"),
        (lambda: SRKTDN((36, 64, 128)), r"widths are \(36, 64, 128\)"),
        (lambda: KTDN((64, 64, 128)), "make 96 channels at 1/8 of the size and 88 at 1/4; a pixel shuffle"),
        (lambda: SRKTDN(**NARROW, inside=0), "inside is 0"),
        (lambda: DehazingTeacher((16, 32, 48)), "each double the one before"),
        (lambda: DehazingTeacher(middle=1023), "middle 1023"),
        (lambda: KTDN(weights="coco"), "weights is 'coco'"),
        (lambda: DehazingTeacher(weights="coco"), "weights is 'coco'"),
        (lambda: KTDN(**NARROW, weights="imagenet"), "no ImageNet weights for Res2Net101 in other sizes"),
        (lambda: DehazingTeacher(**NARROW_TEACHER, weights="imagenet"), "no ImageNet weights for ResNet18 in other"),
    ],
)
def test_what_cannot_be_built_is_named(build, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        build()


# --- the encoders' weights -------------------------------------------------------------------------------------------


def test_offline_auto_takes_a_random_start_and_imagenet_is_refused(cache):
    with torch.device("meta"):
        network = SRKTDN(weights="auto")
        assert network.weights_used.startswith("none: a random start, because the ImageNet weights could not be")
        with pytest.raises(InputError, match="ImageNet weights of Res2Net101 are not .* Connect to the internet, or"):
            KTDN(weights="imagenet")
    assert "no ImageNet weights for Res2Net101 in other" in KTDN(**NARROW, weights="auto").weights_used
    assert not list(cache.glob("*.safetensors"))


def test_the_cached_weights_are_used_and_damaged_ones_are_no_traceback(cache):
    import timm

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in timm.create_model("res2net101d").state_dict().items()}
    theirs = {
        name: torch.full(shape, number, dtype=torch.bfloat16) for number, (name, shape) in enumerate(shapes.items())
    }
    cache.mkdir(parents=True)
    save_file(theirs, cache / "res2net101d.in1k.safetensors")
    network = KTDN(weights="imagenet")
    assert network.weights_used == "imagenet"
    own = network.encoder.state_dict()
    assert own.keys() == {name for name in theirs if not name.startswith(("layer4.", "fc."))}
    assert all(torch.equal(value, theirs[name].to(value.dtype)) for name, value in own.items())

    (cache / "res2net101d.in1k.safetensors").write_bytes(b"half of it")
    with pytest.raises(InputError, match="ImageNet weights of Res2Net101 .*is damaged: delete it"):
        KTDN(weights="imagenet")
