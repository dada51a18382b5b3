"""OFDLoss and ofd_margin by their laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import WIDTHS, check_common, check_finite, check_half_precision, randn
from torch import nn

from kdlab import InputError
from kdlab.losses.feature import OFDLoss, ofd_margin

SHAPE = (3, 2, 4, 5)
MARGIN = torch.tensor([-0.4, -0.9], dtype=torch.float64)


def literal(student, teacher, margin):
    """The definition, one element at a time."""
    total = 0.0
    for s_n, t_n in zip(student, teacher, strict=True):
        for s_c, t_c, m in zip(s_n, t_n, margin.tolist(), strict=True):
            for s, t in zip(s_c.flatten().tolist(), t_c.flatten().tolist(), strict=True):
                t = max(t, m)
                total += (s - t) ** 2 * (s > t or t > 0)
    return total / len(student) / 1000


def batchnorm(bias, weight):
    layer = nn.BatchNorm2d(len(bias)).double()
    layer.bias.data, layer.weight.data = torch.tensor(bias).double(), torch.tensor(weight).double()
    return layer


def test_equals_the_literal_formula_in_float64():
    student, teacher = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    assert OFDLoss(MARGIN)(student, teacher).item() == pytest.approx(literal(student, teacher, MARGIN), rel=1e-12)


def test_what_every_loss_obeys():
    check_common(OFDLoss(MARGIN), randn(*SHAPE, seed=1), randn(*SHAPE, seed=2))
    check_half_precision(OFDLoss(MARGIN), randn(*SHAPE, seed=1), randn(*SHAPE, seed=2))


def test_a_sum_over_the_sample_divided_by_a_thousand():
    student, teacher = torch.zeros(2, 2, 3, 3), torch.full((2, 2, 3, 3), 2.0)
    assert OFDLoss(MARGIN)(student, teacher).item() == pytest.approx(18 * 4 / 1000)


def test_another_algebraic_form_gives_the_same():
    """Positive targets: the squared error. Others: the squared error of what is above the margin or the target."""
    student, teacher = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    target = teacher.maximum(MARGIN[:, None, None])
    gap = torch.where(target > 0, student - target, (student - target).relu())
    torch.testing.assert_close(OFDLoss(MARGIN)(student, teacher), gap.square().sum() / 3 / 1000)


def test_zero_at_a_match_and_wherever_teacher_and_student_are_both_not_active():
    teacher = randn(*SHAPE)
    assert OFDLoss(MARGIN)(teacher.maximum(MARGIN[:, None, None]), teacher) == 0
    assert OFDLoss(MARGIN)(teacher, teacher) == 0
    inactive = torch.full(SHAPE, -5.0)
    assert OFDLoss(MARGIN)(inactive * 10, inactive) == 0
    assert OFDLoss(MARGIN)(inactive * 10, -inactive) > 0
    assert OFDLoss(MARGIN * 0)(inactive, inactive) == 0  # a target of exactly 0 is not active


def test_doubling_the_batch_keeps_the_mean():
    student, teacher = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    twice = OFDLoss(MARGIN)(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, OFDLoss(MARGIN)(student, teacher))


def test_the_margin_travels_with_the_module_and_is_its_own():
    given_margin = MARGIN.clone()
    loss = OFDLoss(given_margin)
    given_margin.zero_()
    assert torch.equal(loss.state_dict()["margin"], MARGIN)
    assert loss.float().margin.dtype == torch.float32
    assert list(loss.parameters()) == []


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 2.0), (-1.0, 0.5), (2.0, 1.0), (-4.0, 0.1)])
def test_the_margin_is_the_mean_of_the_negative_part_of_a_normal_distribution(mean, std):
    grid = torch.linspace(mean - 12 * std, min(0.0, mean + 12 * std), 200_001, dtype=torch.float64)
    density = (-0.5 * ((grid - mean) / std) ** 2).exp()
    expected = torch.trapezoid(grid * density, grid) / torch.trapezoid(density, grid)
    for weight in (std, -std):  # the sign of a weight does not change the spread
        torch.testing.assert_close(ofd_margin(batchnorm([mean], [weight]))[0], expected, rtol=1e-6, atol=0)


def test_a_channel_that_is_hardly_ever_negative_has_minus_three_standard_deviations():
    torch.testing.assert_close(ofd_margin(batchnorm([4.0, 400.0], [1.0, -2.0])).tolist(), [-3.0, -6.0])
    assert ofd_margin(batchnorm([3.0], [1.0]))[0] == pytest.approx(
        3 - math.exp(-4.5) / math.sqrt(2 * math.pi) / (0.5 * math.erfc(3 / math.sqrt(2)))
    )


def test_margins_are_always_usable():
    layer = batchnorm([0.0, 1.0, -1.0, 1e4, -1e4], [0.0, 0.0, 0.0, 1e-30, 1e-30])
    margin = ofd_margin(layer)
    assert margin[2] == -1
    assert not margin.requires_grad
    OFDLoss(margin)
    assert ofd_margin(layer.half()).dtype == torch.float16


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float16, 6e4), (torch.bfloat16, 1e4)])
def test_finite_at_extreme_features(dtype, size):
    features = torch.full((2, 2, 4, 4), size, dtype=dtype)
    for student, teacher in ((features, -features), (-features, features), (features * 0, features * 0)):
        value, _ = check_finite(OFDLoss(MARGIN), student, teacher)
        assert value >= 0


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 4),
    dtype=st.sampled_from(WIDTHS),
    scale=st.floats(0, 1e4),
    seed=st.integers(0, 999),
)
def test_any_shape_dtype_and_size_gives_a_finite_value_not_below_zero(shape, dtype, scale, seed):
    student, teacher = (randn(*shape, seed=seed + i, scale=scale, dtype=dtype) for i in (0, 1))
    loss = OFDLoss(-randn(shape[1], seed=seed + 2, scale=scale).abs())
    assert check_finite(loss, student, teacher)[0] >= 0


@pytest.mark.parametrize("margin", [[-1.0, 0.1], [float("nan")], [float("-inf")], -1.0])
def test_a_margin_that_makes_no_sense_is_refused(margin, shapes_unchecked):
    with pytest.raises(InputError, match="margin is .*0 or below"):
        OFDLoss(torch.tensor(margin))


def test_a_margin_for_other_channels_is_refused():
    with pytest.raises(InputError, match="3 channels; this loss was made for 2"):
        OFDLoss(MARGIN)(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False), nn.GroupNorm(1, 2), nn.ReLU()])
def test_a_layer_that_is_no_batch_norm_is_refused(layer):
    with pytest.raises(InputError, match="wanted: a batch norm with weight and bias"):
        ofd_margin(layer)


def test_integers_are_refused(shapes_unchecked):
    with pytest.raises(InputError, match="floating point numbers"):
        OFDLoss(MARGIN)(torch.zeros(SHAPE).int(), torch.zeros(SHAPE))


@pytest.mark.parametrize("margin", [[0.0, -1.0], -1.0])
def test_a_margin_that_is_no_tensor_is_refused(margin, shapes_unchecked):
    with pytest.raises(InputError, match=f"margin is a {type(margin).__name__}: .*wanted: a tensor"):
        OFDLoss(margin)
