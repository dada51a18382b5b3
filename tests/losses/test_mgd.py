"""MGDLoss by its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import WIDTHS, check_common, check_finite, fresh, randn
from torch import nn

from kdlab import InputError
from kdlab.losses.dense import MGDLoss


def make(student_channels=3, teacher_channels=2, mask_ratio=0.65, mask="spatial", dtype=torch.float64):
    torch.manual_seed(1)
    return MGDLoss(student_channels, teacher_channels, mask_ratio, mask).to(dtype)


def copying(mask_ratio=0.0, mask="spatial", channels=2):
    """A loss whose generator puts out what it gets, if that is not negative: it shows the masked student."""
    loss = make(channels, channels, mask_ratio, mask)
    for layer in (loss.generator[0], loss.generator[2]):
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    return loss


def weighted(loss):
    """With the published weight: a bare sum of squares has gradients beyond what float16 holds."""
    return lambda student, teacher: 2e-5 * loss(student, teacher)


def kept(loss, channels=2):
    """What the mask leaves of a map of ones."""
    seen = []
    loss.generator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    loss(torch.ones(8, channels, 16, 16).double(), torch.ones(8, channels, 16, 16).double())
    return seen[0]


def convolved(maps, layer):
    """A 3x3 convolution with a padding of 1, one output at a time."""
    c, h, w = maps.shape
    padded = torch.zeros(c, h + 2, w + 2, dtype=maps.dtype)
    padded[:, 1:-1, 1:-1] = maps
    rows = [
        [[(padded[:, y : y + 3, x : x + 3] * weight).sum() + bias for x in range(w)] for y in range(h)]
        for weight, bias in zip(layer.weight.detach(), layer.bias.detach(), strict=True)
    ]
    return torch.tensor(rows, dtype=maps.dtype)


def literal(loss, student, teacher, seed):
    """The definition, one image at a time, with the mask that the seed gives."""
    torch.manual_seed(seed)
    n, _, h, w = student.shape
    c = teacher.shape[1]
    mask = (torch.rand((n, 1, h, w) if loss.mask == "spatial" else (n, c, 1, 1)) < 1 - loss.mask_ratio).double()
    total = 0.0
    for s, t, m in zip(student, teacher, mask, strict=True):
        if s.shape != t.shape:
            s = torch.einsum("oi,ihw->ohw", loss.align.weight.detach()[:, :, 0, 0], s) + loss.align.bias[:, None, None]
        generated = convolved(convolved((s * m).detach(), loss.generator[0]).clamp(min=0), loss.generator[2])
        total += ((generated - t) ** 2).sum().item()
    return total / n


@pytest.mark.parametrize("mask", ["spatial", "channel"])
@pytest.mark.parametrize("channels", [(3, 2), (2, 2)])
def test_equals_the_literal_formula_in_float64(mask, channels):
    loss, student, teacher = make(*channels, 0.4, mask), randn(2, channels[0], 4, 3), randn(2, channels[1], 4, 3)
    torch.manual_seed(5)
    assert loss(student, teacher).item() == pytest.approx(literal(loss, student, teacher, 5), rel=1e-12)


@pytest.mark.parametrize("mask", ["spatial", "channel"])
@pytest.mark.parametrize("size", [(4, 3), (1, 1)])
def test_what_every_loss_obeys(mask, size):
    check_common(make(mask_ratio=0.1, mask=mask), randn(2, 3, *size, seed=1), randn(2, 2, *size, seed=2))


@pytest.mark.parametrize("mask", ["spatial", "channel"])
@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.65, 1.0])
def test_the_ratio_is_the_share_that_is_masked(ratio, mask):
    """0.65 keeps 35 in a hundred. The other way round the published ratios would mean other things."""
    channels = 2 if mask == "spatial" else 64
    share = kept(copying(ratio, mask, channels), channels).mean().item()
    assert share == pytest.approx(1 - ratio, abs=0.06 if 0 < ratio < 1 else 0)


def test_what_a_mask_takes():
    """A position in all channels, or a channel at all positions; of every image something else."""
    spatial = kept(copying(0.5, "spatial", 4), 4)
    assert torch.equal(spatial, spatial[:, :1].expand_as(spatial))
    channel = kept(copying(0.5, "channel", 4), 4)
    assert torch.equal(channel, channel[:, :, :1, :1].expand_as(channel))
    for mask in (spatial, channel):
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert not torch.equal(mask[0], mask[1]) or not torch.equal(mask[0], mask[2])


def test_zero_where_the_generated_map_is_the_teachers_and_nowhere_below():
    teacher = randn(3, 2, 4, 4).abs()
    assert copying()(teacher.clone(), teacher) == 0
    assert copying()(teacher + 1, teacher) == 2 * 4 * 4  # a sum over the sample, a mean over the batch
    assert copying(0.5)(teacher.clone(), teacher) > 0
    torch.testing.assert_close(copying(1.0)(teacher.clone(), teacher), teacher.square().sum() / 3)


def test_the_official_settings_of_one_stage_detectors_are_the_defaults():
    loss = MGDLoss(3, 2)
    assert (loss.mask_ratio, loss.mask) == (0.65, "spatial")


def test_doubling_the_batch_keeps_the_mean():
    student, teacher = randn(3, 3, 4, 4, seed=1), randn(3, 2, 4, 4, seed=2)
    loss = make(mask_ratio=0.0)
    torch.testing.assert_close(loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)), loss(student, teacher))


@pytest.mark.parametrize("training", [True, False])
def test_the_mask_is_new_at_every_call_and_repeats_from_a_seed(training):
    loss, teacher = copying(0.5).train(training), randn(3, 2, 4, 4).abs()
    first, second = loss(teacher, teacher), loss(teacher, teacher)
    assert first != second
    assert fresh(loss, teacher, teacher) == fresh(loss, teacher, teacher)


def test_the_generator_and_the_alignment_are_parameters_that_learn():
    loss = make()
    loss(randn(2, 3, 4, 4, seed=1), randn(2, 2, 4, 4, seed=2)).backward()
    assert {name.split(".")[0] for name, _ in loss.named_parameters()} == {"align", "generator"}
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())
    assert list(make(2, 2).align.parameters()) == []


@pytest.mark.parametrize("dtype", WIDTHS)
def test_half_precision_is_compared_in_float32(dtype):
    loss, student, teacher = make(dtype=torch.float32), randn(2, 3, 4, 4, seed=1), randn(2, 2, 4, 4, seed=2)
    student, teacher = student.to(dtype), teacher.to(dtype)
    value = fresh(loss, student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, fresh(loss, student.float(), teacher.float()))
    assert fresh(loss.to(dtype), student, teacher).dtype == torch.promote_types(dtype, torch.float32)


def test_autocast_leaves_the_comparison_in_float32():
    loss, student = copying().float(), torch.ones(2, 2, 4, 4)
    teacher = student + 2**-10  # nothing in bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student, teacher))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float16, 6e4), (torch.bfloat16, 1e4)])
def test_finite_at_extreme_features(dtype, size):
    student, teacher = torch.full((2, 3, 4, 4), size, dtype=dtype), torch.full((2, 2, 4, 4), -size, dtype=dtype)
    for mask in ("spatial", "channel"):
        loss = weighted(make(mask=mask, dtype=torch.float32))
        check_finite(loss, student, teacher)
        check_finite(loss, student * 0, teacher * 0)


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(1, 4),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    dtype=st.sampled_from(WIDTHS),
    scale=st.floats(0, 1e4),
    ratio=st.floats(0, 1),
    mask=st.sampled_from(["spatial", "channel"]),
    seed=st.integers(0, 999),
)
def test_any_shape_dtype_and_size_gives_a_finite_value_not_below_zero(
    n, channels, size, dtype, scale, ratio, mask, seed
):
    student, teacher = (randn(n, c, *size, seed=seed + i, scale=scale, dtype=dtype) for i, c in enumerate(channels))
    loss = weighted(make(*channels, ratio, mask, torch.float32))
    assert check_finite(loss, student, teacher)[0] >= 0


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_that_makes_no_sense_is_refused(ratio):
    with pytest.raises(InputError, match="mask_ratio is .*0 .* to 1"):
        MGDLoss(3, 2, ratio)


def test_an_unknown_mask_is_refused(shapes_unchecked):
    with pytest.raises(InputError, match="unknown mask 'chanel'. Did you mean 'channel'"):
        MGDLoss(3, 2, mask="chanel")


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        (torch.zeros(2, 4, 4, 4), torch.zeros(2, 2, 4, 4), "student's tensor is .*4 channels.* made for 3"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), "teacher's tensor is .*3 channels.* made for 2"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 2, 2), r"\(2, 3, 4, 4\).*\(2, 2, 2, 2\).*must be the same"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, 2, 4, 4), "must be the same"),
        (torch.zeros(2, 3), torch.zeros(2, 2), "wanted: 4 dimensions"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 2), "teacher's tensor is .*wanted: 4 dimensions"),
        (torch.zeros(2, 3, 4, 4).int(), torch.zeros(2, 2, 4, 4), "floating point numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(student, teacher, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        make(dtype=torch.float32)(student, teacher)
