"""ATLoss by its laws."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import WIDTHS, check_common, check_finite, check_half_precision, randn

from kdlab import InputError
from kdlab.losses.feature import ATLoss

POWERS = [1, 2, 3.5, 4]


def literal(student, teacher, power):
    """The definition, one position at a time, for maps of one size."""
    total, (n, _, h, w) = 0.0, student.shape
    for maps in zip(student, teacher, strict=True):
        attention = []
        for features in maps:
            positions = features.flatten(1).T.tolist()
            activity = [sum(abs(f) ** power for f in position) / len(position) for position in positions]
            norm = sum(a**2 for a in activity) ** 0.5
            attention.append([a / norm for a in activity])
        total += sum((s - t) ** 2 for s, t in zip(*attention, strict=True))
    return total / (n * h * w)


def official(student, teacher):
    """Attention maps at the official power of 2, for maps of one size."""
    student, teacher = (F.normalize(f.pow(2).mean(1).flatten(1)) for f in (student, teacher))
    return (student - teacher).pow(2).mean()


@pytest.mark.parametrize("power", POWERS)
def test_equals_the_literal_formula_in_float64(power):
    student, teacher = randn(3, 2, 4, 3, seed=1), randn(3, 5, 4, 3, seed=2)
    assert ATLoss(power)(student, teacher).item() == pytest.approx(literal(student, teacher, power), rel=1e-12)


@pytest.mark.parametrize("power", POWERS)
def test_what_every_loss_obeys(power):
    """Among it: the gradient is right although the scale of a sample is a constant to it."""
    check_common(ATLoss(power), randn(2, 3, 4, 3, seed=1), randn(2, 2, 2, 2, seed=2))
    check_half_precision(ATLoss(power), randn(2, 3, 4, 3, seed=1), randn(2, 2, 2, 2, seed=2))


def test_the_agreed_reduction_of_the_field():
    """The mean over batch and positions of squared differences; not the sum of norms of the paper's equation."""
    student, teacher = randn(8, 16, 8, 8, seed=1), randn(8, 32, 8, 8, seed=2)
    torch.testing.assert_close(ATLoss()(student, teacher), official(student, teacher), rtol=1e-12, atol=0)


@pytest.mark.parametrize("swap", [False, True])
def test_the_larger_map_is_pooled_before_the_power(swap):
    large, small = randn(3, 4, 8, 8, seed=1), randn(3, 2, 4, 4, seed=2)
    pooled = large.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    pair = (small, large) if swap else (large, small)
    torch.testing.assert_close(ATLoss()(*pair), official(pooled, small), rtol=1e-12, atol=0)


def test_a_map_that_is_wider_and_lower_meets_at_the_smaller_of_both():
    wide, high = randn(2, 3, 2, 8, seed=1), randn(2, 3, 4, 4, seed=2)
    expected = official(F.adaptive_avg_pool2d(wide, (2, 4)), F.adaptive_avg_pool2d(high, (2, 4)))
    torch.testing.assert_close(ATLoss()(wide, high), expected)


@pytest.mark.parametrize("power", POWERS)
def test_zero_at_a_perfect_match_and_nowhere_below(power):
    teacher = randn(3, 4, 5, 5)
    assert ATLoss(power)(teacher.clone(), teacher) == 0
    assert ATLoss(power)(randn(3, 4, 5, 5, seed=1), teacher) > 0


def test_it_sees_neither_the_order_of_channels_nor_their_number_nor_a_factor_on_a_sample():
    """An implementation without the mean over channels would see the first two."""
    student, teacher = randn(3, 4, 5, 5, seed=1), randn(3, 6, 5, 5, seed=2)
    loss = ATLoss()(student, teacher)
    factors = torch.tensor([0.01, 3.0, 1e6], dtype=torch.float64)[:, None, None, None]
    for same in (student[:, [2, 0, 3, 1]], student.repeat(1, 2, 1, 1), student * factors, -student):
        torch.testing.assert_close(ATLoss()(same, teacher), loss, rtol=1e-9, atol=0)


def test_doubling_the_batch_keeps_the_mean():
    student, teacher = randn(3, 4, 5, 5, seed=1), randn(3, 6, 5, 5, seed=2)
    torch.testing.assert_close(
        ATLoss()(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)), ATLoss()(student, teacher)
    )


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("size", [300, 1e4])
def test_activations_of_300_in_float16_do_not_overflow_at_the_square(size, power):
    student, teacher = (randn(2, 4, 4, 4, seed=i, dtype=torch.float16) * size for i in (1, 2))
    value, (gradient,) = check_finite(ATLoss(power), student, teacher)
    assert value == pytest.approx(ATLoss(power)(student.double(), teacher.double()).item(), rel=1e-4)
    assert gradient.dtype == torch.float16


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e30), (torch.float16, 6e4), (torch.bfloat16, 1e30)])
def test_finite_at_extremes(dtype, size, power):
    loss, peak = ATLoss(power), torch.zeros(2, 3, 4, 4, dtype=dtype)
    peak[:, :, 1, 2] = size
    other = peak.flip(2)
    assert check_finite(loss, peak, other)[0] == pytest.approx(2 / 16)
    assert check_finite(loss, peak, peak)[0] == 0
    for student, teacher in ((peak * 0, peak), (peak, peak * 0), (peak * 0, peak * 0)):
        check_finite(loss, student, teacher)


def test_a_map_of_zeros_has_no_gradient_and_a_tiny_one_the_official_value():
    _, (gradient,) = check_finite(ATLoss(), torch.zeros(2, 3, 4, 4), randn(2, 3, 4, 4, dtype=torch.float32))
    assert (gradient == 0).all()
    for scale in (1e-7, 1e-9, 1e-20):
        tiny, teacher = randn(2, 3, 4, 4, seed=1, scale=scale), randn(2, 3, 4, 4, seed=2)
        torch.testing.assert_close(ATLoss()(tiny, teacher), official(tiny, teacher), rtol=1e-9, atol=0)


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(1, 4),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    sizes=st.tuples(*[st.integers(1, 7)] * 4),
    dtype=st.sampled_from(WIDTHS),
    scale=st.one_of(st.just(0.0), st.floats(1e-3, 1e4)),
    power=st.floats(1, 6),
    seed=st.integers(0, 999),
)
def test_any_shape_dtype_and_size_gives_a_finite_value_not_below_zero(n, channels, sizes, dtype, scale, power, seed):
    student = randn(n, channels[0], *sizes[:2], seed=seed, scale=scale, dtype=dtype)
    teacher = randn(n, channels[1], *sizes[2:], seed=seed + 1, scale=scale, dtype=dtype)
    if min(sizes[0], sizes[2]) * min(sizes[1], sizes[3]) == 1:
        with pytest.raises(InputError, match="at least 2 positions"):
            ATLoss(power)(student, teacher)
    else:
        assert check_finite(ATLoss(power), student, teacher)[0] >= 0


@pytest.mark.parametrize("power", [0, 0.5, -2, float("nan"), float("inf")])
def test_a_power_that_makes_no_sense_is_refused(power):
    with pytest.raises(InputError, match="power is .*1 or above"):
        ATLoss(power)


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, 3, 4, 4), "batch is 2 and the teacher's 3"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3), r"teacher's tensor is \(2, 3\); wanted: 4 dimensions"),
        (torch.zeros(2, 3, 4, 4).int(), torch.zeros(2, 3, 4, 4), "floating point numbers"),
        (torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 4, 4), "at least 2 positions"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(student, teacher, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        ATLoss()(student, teacher)
