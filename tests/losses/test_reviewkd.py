"""ReviewKDLoss by its laws."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import WIDTHS, check_common, check_finite, check_half_precision, mapped, randn

from kdlab import InputError
from kdlab.losses.feature import ReviewKDLoss

SHAPES = [(2, 2, 8, 8), (2, 3, 4, 4), (2, 3, 2, 2), (2, 5, 1, 1)]


def stages(seed, shapes=SHAPES, **kind):
    return [randn(*shape, seed=seed + i, **kind) for i, shape in enumerate(shapes)]


def mean_squared_error(student, teacher):
    pairs = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    return sum((s - t) ** 2 for s, t in pairs) / len(pairs)


def literal(student, teacher):
    """The definition, one stage and one level at a time."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        stage, weight, weights = mean_squared_error(s, t), 1.0, 1.0
        for level in (4, 2, 1):
            if level < min(s.shape[2:]):
                weight /= 2
                weights += weight
                s_pooled, t_pooled = (F.adaptive_avg_pool2d(maps, level) for maps in (s, t))
                stage += weight * mean_squared_error(s_pooled, t_pooled)
        total += stage / weights
    return total


def test_equals_the_literal_formula_in_float64():
    student, teacher = stages(1), stages(11)
    assert ReviewKDLoss()(student, teacher).item() == pytest.approx(literal(student, teacher), rel=1e-12)
    uneven = [(2, 2, 3, 9), (1, 2, 6, 5)]
    student, teacher = stages(1, uneven), stages(11, uneven)
    assert ReviewKDLoss()(student, teacher).item() == pytest.approx(literal(student, teacher), rel=1e-12)


@pytest.mark.parametrize("container", [list, tuple])
def test_what_every_loss_obeys(container):
    student, teacher = container(stages(1)), container(stages(11))
    check_common(ReviewKDLoss(), student, teacher)
    check_half_precision(ReviewKDLoss(), student, teacher)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_a_constant_gap_costs_its_square_whatever_levels_a_map_has(size):
    """It is the same at every level, so only weights that are divided by their own sum give it back."""
    teacher = [randn(2, 3, size, size)]
    assert ReviewKDLoss()([teacher[0] + 3], teacher).item() == pytest.approx(9)


def test_a_gap_without_a_mean_is_seen_at_full_size_only():
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None]
    assert ReviewKDLoss()([board], [board * 0]).item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))
    small = board[..., :4, :4]  # 4x4 is left out, and 2x2 is the first to halve
    assert ReviewKDLoss()([small], [small * 0]).item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4))


def test_the_sum_over_stages():
    student, teacher = stages(1), stages(11)
    apart = sum(ReviewKDLoss()([s], [t]) for s, t in zip(student, teacher, strict=True))
    torch.testing.assert_close(ReviewKDLoss()(student, teacher), apart)


def test_zero_at_a_perfect_match_and_nowhere_below():
    teacher = stages(11)
    assert ReviewKDLoss()([t.clone() for t in teacher], teacher) == 0
    assert ReviewKDLoss()(stages(1), teacher) > 0


def test_doubling_the_batch_keeps_the_mean():
    student, teacher = stages(1), stages(11)
    twice = [mapped(lambda maps: maps.repeat(2, 1, 1, 1), side) for side in (student, teacher)]
    torch.testing.assert_close(ReviewKDLoss()(*twice), ReviewKDLoss()(student, teacher))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float16, 6e4), (torch.bfloat16, 1e4)])
def test_finite_at_extreme_features(dtype, size):
    high = [torch.full(shape, size, dtype=dtype) for shape in SHAPES]
    check_finite(ReviewKDLoss(), high, mapped(torch.neg, high))
    assert check_finite(ReviewKDLoss(), high, high)[0] == 0
    zeros = mapped(torch.zeros_like, high)
    assert check_finite(ReviewKDLoss(), zeros, zeros)[0] == 0


@settings(max_examples=200, deadline=None)
@given(
    shapes=st.lists(st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 9)] * 2), min_size=1, max_size=4),
    dtype=st.sampled_from(WIDTHS),
    scale=st.floats(0, 1e4),
    seed=st.integers(0, 999),
)
def test_any_shape_dtype_and_size_gives_a_finite_value_not_below_zero(shapes, dtype, scale, seed):
    student, teacher = (stages(seed + i, shapes, scale=scale, dtype=dtype) for i in (0, 10))
    assert check_finite(ReviewKDLoss(), student, teacher)[0] >= 0


ONE = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        ([ONE, ONE], [ONE], "student has 2 stages and the teacher 1"),
        ([], [], "student has 0 stages and the teacher 0"),
        (ONE, [ONE], r"student's stages are one tensor \(2, 3, 4, 4\); wanted: a list"),
        ([ONE], ONE, r"teacher's stages are one tensor \(2, 3, 4, 4\); wanted: a list"),
        ([ONE], [ONE[:, :2]], r"\(2, 3, 4, 4\).*\(2, 2, 4, 4\).*connector"),
        ([ONE[..., 0, 0]], [ONE[..., 0, 0]], "wanted: 4 dimensions"),
        ([ONE.int()], [ONE], "floating point numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(student, teacher, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        ReviewKDLoss()(student, teacher)
