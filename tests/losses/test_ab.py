"""ABLoss by its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import WIDTHS, check_common, check_finite, check_half_precision, randn

from kdlab import InputError
from kdlab.losses.feature import ABLoss

SHAPE = (3, 2, 4, 5)
MARGINS = [0.3, 1.0, 2.0]


def literal(student, teacher, margin):
    """The definition, one neuron at a time."""
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if t <= 0 and s > -margin:
            total += (s + margin) ** 2
        if t > 0 and s <= margin:
            total += (s - margin) ** 2
    return total / len(student) * 3 / 1000


@pytest.mark.parametrize("margin", MARGINS)
def test_equals_the_literal_formula_in_float64(margin):
    student, teacher = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    teacher[:, :, 0] = 0  # a neuron at exactly zero is not active
    assert ABLoss(margin)(student, teacher).item() == pytest.approx(literal(student, teacher, margin), rel=1e-12)


@pytest.mark.parametrize("margin", MARGINS)
def test_what_every_loss_obeys(margin):
    check_common(ABLoss(margin), randn(*SHAPE, seed=1), randn(*SHAPE, seed=2))
    check_half_precision(ABLoss(margin), randn(*SHAPE, seed=1), randn(*SHAPE, seed=2))


def test_a_sum_over_the_sample_times_three_thousandths():
    """Neither the bare sum nor the mean over elements, which other libraries have: those differ by orders."""
    zeros, active = torch.zeros(2, 4, 3, 3), torch.ones(2, 4, 3, 3)
    assert ABLoss()(zeros, active).item() == pytest.approx(36 * 3 / 1000)
    assert ABLoss()(zeros, -active).item() == pytest.approx(36 * 3 / 1000)


def test_zero_beyond_the_margin_on_the_teachers_side_however_far():
    teacher = randn(*SHAPE)
    for distance in (1.0, 1.5, 1e4):
        assert ABLoss()(teacher.sign() * distance, teacher) == 0
    assert ABLoss()(teacher.sign() * 0.999, teacher) > 0
    assert ABLoss()(-teacher.sign(), teacher).item() == pytest.approx(2 * 4 * 5 * 4 * 3 / 1000)


def test_only_the_sign_of_the_teacher_counts():
    student, teacher = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    torch.testing.assert_close(ABLoss()(student, teacher * 1e3), ABLoss()(student, teacher))
    torch.testing.assert_close(ABLoss()(student, teacher.sign()), ABLoss()(student, teacher))


def test_doubling_the_batch_keeps_the_mean():
    student, teacher = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    twice = ABLoss()(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, ABLoss()(student, teacher))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float16, 6e4), (torch.bfloat16, 1e4)])
def test_finite_at_extreme_features(dtype, size):
    features = torch.full((2, 3, 4, 4), size, dtype=dtype)
    assert check_finite(ABLoss(), features, features)[0] == 0
    size = features[0, 0, 0, 0].item()
    assert check_finite(ABLoss(), features, -features)[0] == pytest.approx(48 * (size + 1) ** 2 * 3 / 1000)
    assert check_finite(ABLoss(), features * 0, features * 0)[0] == pytest.approx(48 * 3 / 1000)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 4),
    dtype=st.sampled_from(WIDTHS),
    scale=st.floats(0, 1e4),
    margin=st.floats(1e-3, 1e3),
    seed=st.integers(0, 999),
)
def test_any_shape_dtype_and_size_gives_a_finite_value_not_below_zero(shape, dtype, scale, margin, seed):
    student, teacher = (randn(*shape, seed=seed + i, scale=scale, dtype=dtype) for i in (0, 1))
    assert check_finite(ABLoss(margin), student, teacher)[0] >= 0


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan"), float("inf")])
def test_a_margin_that_makes_no_sense_is_refused(margin):
    with pytest.raises(InputError, match="margin is .*finite number above 0"):
        ABLoss(margin)


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
        ABLoss()(student, teacher)
