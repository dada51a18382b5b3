"""FTLoss by its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import WIDTHS, check_common, check_finite, check_half_precision, randn

from kdlab import InputError
from kdlab.losses.feature import FTLoss

SHAPE = (3, 2, 4, 5)
POWERS = [1, 2]


def literal(student, teacher, power):
    """The definition, one element at a time."""
    total = 0.0
    for factors in zip(student, teacher, strict=True):
        s, t = (factor.flatten().tolist() for factor in factors)
        s_norm, t_norm = (sum(x**2 for x in factor) ** 0.5 for factor in (s, t))
        total += sum(abs(b / t_norm - a / s_norm) ** power for a, b in zip(s, t, strict=True))
    return total / student.numel()


@pytest.mark.parametrize("power", POWERS)
def test_equals_the_literal_formula_in_float64(power):
    student, teacher = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    assert FTLoss(power)(student, teacher).item() == pytest.approx(literal(student, teacher, power), rel=1e-12)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("shape", [SHAPE, (2, 5, 1, 1)])
def test_what_every_loss_obeys(power, shape):
    check_common(FTLoss(power), randn(*shape, seed=1), randn(*shape, seed=2))
    check_half_precision(FTLoss(power), randn(*shape, seed=1), randn(*shape, seed=2))


@pytest.mark.parametrize("power", POWERS)
def test_zero_at_a_perfect_match_and_nowhere_below(power):
    teacher = randn(*SHAPE)
    assert FTLoss(power)(teacher.clone(), teacher) == 0
    assert FTLoss(power)(randn(*SHAPE, seed=1), teacher) > 0


@pytest.mark.parametrize("power", POWERS)
def test_it_does_not_see_a_positive_factor_on_a_sample_but_does_see_the_sign(power):
    student, teacher = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    factors = torch.tensor([1e-5, 3.0, 1e6], dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(FTLoss(power)(student * factors, teacher), FTLoss(power)(student, teacher))
    assert FTLoss(power)(-teacher, teacher) > FTLoss(power)(student, teacher)


def test_channels_are_not_collapsed_as_in_attention_transfer():
    teacher = randn(3, 4, 5, 5)
    shuffled = teacher[:, [2, 0, 3, 1]]  # its attention map is the teacher's own
    assert FTLoss()(shuffled, teacher) > 0.01
    assert FTLoss()(-teacher, teacher) > 0.01


def test_doubling_the_batch_keeps_the_mean():
    student, teacher = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    twice = FTLoss()(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, FTLoss()(student, teacher))


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float16, 6e4), (torch.bfloat16, 1e4)])
def test_finite_at_extremes(dtype, size, power):
    loss, features = FTLoss(power), torch.full((2, 3, 4, 4), size, dtype=dtype)
    peak = torch.zeros_like(features)
    peak[:, 0, 0, 0] = size
    for student in (features, peak, peak * 0):
        for teacher in (-features, peak.flip(1), peak * 0):
            assert check_finite(loss, student, teacher)[0] >= 0


def test_a_factor_of_zeros_has_a_gradient_that_half_precision_can_hold():
    """Divided by a small constant in place of its norm, it would have one of 1e12."""
    _, (gradient,) = check_finite(FTLoss(), torch.zeros(SHAPE, dtype=torch.float16), randn(*SHAPE, dtype=torch.float16))
    assert gradient.abs().max() <= 1


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 4),
    dtype=st.sampled_from(WIDTHS),
    scale=st.one_of(st.just(0.0), st.floats(1e-3, 1e4)),
    power=st.sampled_from(POWERS),
    seed=st.integers(0, 999),
)
def test_any_shape_dtype_and_size_gives_a_finite_value_not_below_zero(shape, dtype, scale, power, seed):
    student, teacher = (randn(*shape, seed=seed + i, scale=scale, dtype=dtype) for i in (0, 1))
    assert check_finite(FTLoss(power), student, teacher)[0] >= 0


def test_the_official_power_is_the_default():
    assert FTLoss().power == 1


@pytest.mark.parametrize("power", [0, 3, -1])
def test_another_power_is_refused(power):
    with pytest.raises(InputError, match="power is .*must be 1 .* or 2"):
        FTLoss(power)


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4), r"\(2, 3, 4, 4\).*\(2, 5, 4, 4\).*connector"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "wanted: 4 dimensions"),
        (torch.zeros(2, 3, 4, 4).int(), torch.zeros(2, 3, 4, 4), "floating point numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(student, teacher, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        FTLoss()(student, teacher)
