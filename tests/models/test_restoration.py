"""MSBDN: the published sizes, part by part, and images of every size."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from kdlab import InputError
from kdlab.distill import Taps
from kdlab.models import MSBDN, build_model
from kdlab.models.restoration import Correct, padded

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return MSBDN().eval()


@pytest.fixture(scope="module")
def narrow():
    torch.manual_seed(0)
    return MSBDN(4).eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_parameters_are_the_published_networks_part_by_part(published):
    assert count(published) == 28_712_861
    assert count(published.conv_input) == 5_824
    assert [count(part) for part in published.down] == [4_640, 18_496, 73_856, 295_168]
    assert [count(part) for part in published.encoder_dense] == [13_923, 55_491, 221_571, 885_507]
    assert [count(part.dense) for part in published.encoder_fuse] == [24_320, 97_280, 389_120, 1_556_480]
    assert [count(part.correct) for part in published.encoder_fuse] == [4_122, 20_556, 86_190, 348_528]
    assert count(published.bottleneck) == 21_242_898
    assert [count(part) for part in published.up] == [295_040, 73_792, 18_464, 4_624]
    assert [count(part) for part in published.decoder_dense] == [885_507, 221_571, 55_491, 13_923]
    assert [count(part.dense) for part in published.decoder_fuse] == [389_120, 97_280, 24_320, 6_080]
    assert [count(part.correct) for part in published.decoder_fuse] == [262_338, 327_972, 344_406, 348_528]
    assert count(published.conv_output) == 435


def literal_forward(w, image):
    """The published forward pass, step by step, with the weights ``w`` by name: the output and the four tapped maps."""

    def conv(x, name, kernel=3, stride=1):
        x = F.pad(x, [kernel // 2] * 4, mode="reflect")
        return F.conv2d(x, w[f"{name}.1.weight"], w[f"{name}.1.bias"], stride)

    def residual_blocks(x, name, count=3):
        for i in range(count):
            body = f"{name}.blocks.{i}.body"
            x = 0.1 * conv(F.prelu(conv(x, f"{body}.0"), w[f"{body}.1.weight"]), f"{body}.2") + x
        return x

    def dense_block(x, name):
        grown = x
        for i in range(4):
            grown = torch.cat([grown, F.conv2d(grown, w[f"{name}.layers.{i}.weight"], padding=1).relu()], dim=1)
        return F.conv2d(grown, w[f"{name}.fusion.weight"]) + x

    def step(x, name, enlarge):
        change = F.conv_transpose2d if enlarge else F.conv2d
        x = change(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], stride=2, padding=1)
        return F.prelu(x, w[f"{name}.1.weight"])

    def fuse(x, name, memory, finer):
        half = x.shape[1] // 2
        f, n = x[:, :half], len(memory) + 1
        for i in range(n - 1):
            u = f
            for j in range(n - 1 - i):
                u = step(u, f"{name}.correct.there.{j}", enlarge=finer)
            u = u - memory[i]
            for j in range(n - 2 - i, -1, -1):
                u = step(u, f"{name}.correct.back.{j}", enlarge=not finer)
            f = f + u
        memory.append(f)
        return torch.cat([f, dense_block(x[:, half:], f"{name}.dense")], dim=1)

    x = conv(image, "conv_input", kernel=11)
    memory = [x[:, : x.shape[1] // 2]]
    x1 = residual_blocks(x, "encoder_dense.0") + x
    r2 = fuse(conv(x1, "down.0", stride=2), "encoder_fuse.0", memory, finer=True)
    r2 = residual_blocks(r2, "encoder_dense.1") + r2
    r4 = fuse(conv(r2, "down.1", stride=2), "encoder_fuse.1", memory, finer=True)
    r4 = residual_blocks(r4, "encoder_dense.2") + r4
    r8 = fuse(conv(r4, "down.2", stride=2), "encoder_fuse.2", memory, finer=True)
    r8 = residual_blocks(r8, "encoder_dense.3") + r8
    r = fuse(conv(r8, "down.3", stride=2), "encoder_fuse.3", memory, finer=True)
    t = 2 * r
    z = x = residual_blocks(t, "bottleneck", 18) + t - r
    memory = [z[:, : z.shape[1] // 2]]
    for i, skip in enumerate([r8, r4, r2, x1]):
        x = F.conv_transpose2d(x, w[f"up.{i}.weight"], w[f"up.{i}.bias"], stride=2)
        up = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
        s = up + skip
        s = residual_blocks(s, f"decoder_dense.{i}") + s - up
        x = fuse(s, f"decoder_fuse.{i}", memory, finer=False)
    return conv(x, "conv_output"), [r4, r8, r, z]


@torch.no_grad()
def test_the_forward_pass_is_the_published_one_step_by_step():
    torch.manual_seed(0)
    network, images = MSBDN(4).double(), torch.rand(2, 3, 32, 48, dtype=torch.float64)
    with Taps(network, MSBDN.TAPS) as taps:
        restored = network(images)
    expected, maps = literal_forward(network.state_dict(), images)
    torch.testing.assert_close(restored, expected)
    for name, wanted in zip(MSBDN.TAPS, maps, strict=True):
        torch.testing.assert_close(taps[name], wanted)


@torch.no_grad()
def test_a_correction_is_what_the_map_has_more_than_the_memory_brought_back():
    correct, x, earlier = Correct(8, 1, finer=True), torch.randn(1, 8, 4, 4), torch.randn(1, 4, 8, 8)
    wanted = x + correct.back[0](correct.there[0](x) - earlier)
    torch.testing.assert_close(correct(x, [earlier]), wanted)


@torch.no_grad()
def test_the_taps_and_the_work_at_the_published_crop(published):
    with FlopCounterMode(display=False) as counter, Taps(published, MSBDN.TAPS) as taps:
        restored = published(torch.rand(1, 3, 224, 224))
    assert restored.shape == (1, 3, 224, 224)
    shapes = [tuple(taps[name].shape[1:]) for name in MSBDN.TAPS]
    assert shapes == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (256, 14, 14)]
    assert [shape[0] for shape in shapes] == list(published.tap_channels)
    assert counter.get_total_flops() / 2 == pytest.approx(14.98e9, rel=2e-3)


def test_half_the_width_is_a_quarter_of_the_network():
    half = build_model({"name": "MSBDN", "width": 8})
    assert count(half) == 7_183_497
    assert half.tap_channels == (32, 64, 128, 128)
    assert half.architecture == {"name": "MSBDN", "width": 8, "residual": False}


@torch.no_grad()
def test_a_residual_network_adds_its_output_to_the_images(narrow):
    residual = MSBDN(4, residual=True).eval()
    images = torch.rand(1, 3, 37, 40)
    assert torch.equal(residual(images), images)  # at the start
    residual.load_state_dict(narrow.state_dict())
    torch.testing.assert_close(residual(images), images + narrow(images))


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 48), (33, 40), (16, 17), (9, 50), (2, 3), (5, 5)])
def test_the_output_has_the_size_of_the_input(narrow, size):
    assert narrow(torch.rand(2, 3, *size)).shape == (2, 3, *size)


@torch.no_grad()
def test_padding_is_reflection_that_is_cropped_again(narrow):
    images = torch.rand(1, 3, 41, 60)
    by_hand = narrow(F.pad(images, (0, 4, 0, 7), mode="reflect"))[:, :, :41, :60]
    torch.testing.assert_close(narrow(images), by_hand)
    whole = torch.rand(1, 3, 48, 64)
    assert padded(whole) is whole


def test_a_small_image_is_reflected_several_times():
    image = torch.arange(3.0).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    assert padded(image)[0, 0, 0].tolist() == ([0, 1, 2, 1] * 9)[:32]
    assert padded(image).shape == (1, 1, 32, 32)


@torch.no_grad()
def test_each_image_is_restored_by_itself(narrow):
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(narrow(images)[1:2], narrow(images[1:2]), rtol=1e-4, atol=1e-5)


def test_every_parameter_is_used():
    network = MSBDN(4)
    network(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("width", [0, 1, 7, -2])
def test_an_odd_width_is_refused(width):
    with pytest.raises(InputError, match=f"width is {width}; wanted: an even number"):
        MSBDN(width)


def test_a_side_of_one_pixel_is_refused(narrow):
    with pytest.raises(InputError, match="images are 1 high and 20 wide"):
        narrow(torch.rand(1, 3, 1, 20))


def test_a_grey_image_is_refused(narrow, shapes_unchecked):
    with pytest.raises(InputError, match=r"images are \(1, 1, 32, 32\); wanted: \(n, 3, h, w\), red, green and blue"):
        narrow(torch.rand(1, 1, 32, 32))
