"""CWDLoss by its laws."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import WIDTHS, check_common, check_finite, check_half_precision, randn

from kdlab import InputError
from kdlab.losses.dense import CWDLoss

SHAPE = (2, 3, 4, 5)
TEMPERATURES = [0.5, 1.0, 4.0]


def literal(student, teacher, tau):
    """The definition, one channel and one position at a time."""
    total = 0.0
    for maps in zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True):
        p_s, p_t = ([math.exp(z / tau) for z in m.flatten().tolist()] for m in maps)
        p_s, p_t = [p / sum(p_s) for p in p_s], [p / sum(p_t) for p in p_t]
        total += sum(t * math.log(t / s) for s, t in zip(p_s, p_t, strict=True))
    return tau**2 * total / (student.shape[0] * student.shape[1])


def by_log_softmax(student, teacher, tau):
    """The definition by PyTorch's own functions."""
    student, teacher = (F.log_softmax(maps.flatten(2) / tau, dim=-1) for maps in (student, teacher))
    kl = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return kl * tau**2 / (student.shape[0] * student.shape[1])


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_equals_the_literal_formula_in_float64(tau):
    student, teacher = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2, scale=3)
    assert CWDLoss(tau)(student, teacher).item() == pytest.approx(literal(student, teacher, tau), rel=1e-12)


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_what_every_loss_obeys(tau):
    check_common(CWDLoss(tau), randn(*SHAPE, seed=1), randn(*SHAPE, seed=2))
    check_half_precision(CWDLoss(tau), randn(*SHAPE, seed=1), randn(*SHAPE, seed=2))


def test_the_teacher_is_detached_without_the_callers_no_grad():
    student, teacher = randn(*SHAPE, seed=1).requires_grad_(), randn(*SHAPE, seed=2).requires_grad_()
    (3 * CWDLoss(4.0)(student, teacher * 2)).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_value_and_gradient_are_those_of_log_softmax(tau, scale):
    student, twin = (randn(*SHAPE, seed=1, scale=scale).requires_grad_() for _ in range(2))
    teacher = randn(*SHAPE, seed=2, scale=scale)
    value, expected = 7 * CWDLoss(tau)(student, teacher), 7 * by_log_softmax(twin, teacher, tau)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(student.grad, twin.grad, rtol=1e-9, atol=1e-13)


def test_in_float32_as_exact_as_log_softmax():
    for scale in (0.01, 1.0, 100.0):
        student, teacher = (randn(*SHAPE, seed=i, scale=scale, dtype=torch.float32) for i in (1, 2))
        exact = by_log_softmax(student.double(), teacher.double(), 1.0).item()
        assert CWDLoss()(student, teacher).item() == pytest.approx(exact, rel=1e-5, abs=3e-7)


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_zero_at_a_perfect_match_and_nowhere_below(tau):
    teacher = randn(*SHAPE)
    assert CWDLoss(tau)(teacher.clone(), teacher) == 0
    assert CWDLoss(tau)(randn(*SHAPE, seed=1), teacher) > 0


def test_it_does_not_see_a_constant_on_a_channel_but_a_factor():
    student, teacher = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    constants = torch.tensor([7.0, -1e3, 1e6], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(CWDLoss()(student + constants, teacher), CWDLoss()(student, teacher))
    torch.testing.assert_close(CWDLoss()(student, teacher + constants), CWDLoss()(student, teacher))
    assert (CWDLoss()(2 * student, teacher) - CWDLoss()(student, teacher)).abs() > 0.01


def test_doubling_the_batch_or_the_channels_keeps_the_mean():
    """The divisor counts the channels of the maps that are compared, not those of some layer before a connector."""
    student, teacher = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    for times in ((2, 1, 1, 1), (1, 2, 1, 1)):
        twice = CWDLoss(4.0)(student.repeat(times), teacher.repeat(times))
        torch.testing.assert_close(twice, CWDLoss(4.0)(student, teacher))


def test_maps_peaked_at_two_places_cost_their_height_instead_of_nan():
    """The logarithm of a softmax that has become 0 makes 0 times infinity."""
    student, teacher = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    student[..., 0, 0] = teacher[..., 7, 7] = 250.0
    value, (gradient,) = check_finite(CWDLoss(), student, teacher)
    assert value == pytest.approx(250.0)
    assert gradient[0, 0, 0, 0] == 1
    assert gradient[0, 0, 7, 7] == -1


@pytest.mark.parametrize("tau", [0.1, 1.0, 4.0])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float16, 6e4), (torch.bfloat16, 1e4)])
def test_finite_at_extremes(dtype, size, tau):
    loss, peak = CWDLoss(tau), torch.zeros(SHAPE, dtype=dtype)
    peak[..., 0, 0] = size
    value, _ = check_finite(loss, peak, peak.flip(-1))
    assert value == pytest.approx(tau * peak.max().item(), rel=1e-3)
    flat = torch.full_like(peak, size)
    for student, teacher in ((peak, peak), (flat, flat), (flat * 0, flat * 0), (flat, flat * 0)):
        assert check_finite(loss, student, teacher)[0] == 0
    for student, teacher in ((-peak, peak), (flat, peak), (peak, flat * 0)):
        assert check_finite(loss, student, teacher)[0] > 0


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 4),
    dtype=st.sampled_from(WIDTHS),
    scale=st.floats(0, 1e4),
    tau=st.floats(0.1, 100),
    seed=st.integers(0, 999),
)
def test_any_shape_dtype_and_size_gives_a_finite_value_not_below_zero(shape, dtype, scale, tau, seed):
    student, teacher = (randn(*shape, seed=seed + i, scale=scale, dtype=dtype) for i in (0, 1))
    if shape[2] * shape[3] == 1:
        with pytest.raises(InputError, match="at least 2 positions"):
            CWDLoss(tau)(student, teacher)
    else:
        assert check_finite(CWDLoss(tau), student, teacher)[0] >= 0


def test_the_second_derivative_is_right_too():
    student, teacher = randn(*SHAPE, seed=1).requires_grad_(), randn(*SHAPE, seed=2)
    assert torch.autograd.gradgradcheck(lambda maps: CWDLoss(2.0)(maps, teacher), student)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_makes_no_sense_is_refused(temperature):
    with pytest.raises(InputError, match="temperature is .*finite number above 0"):
        CWDLoss(temperature)


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4), r"\(2, 3, 4, 4\).*\(2, 5, 4, 4\).*connector"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "wanted: 4 dimensions"),
        (torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 1, 1), "at least 2 positions"),
        (torch.zeros(2, 3, 4, 4).int(), torch.zeros(2, 3, 4, 4), "floating point numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(student, teacher, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        CWDLoss()(student, teacher)
