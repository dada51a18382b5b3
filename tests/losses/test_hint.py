"""HintLoss by its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import WIDTHS, check_common, check_finite, check_half_precision, randn

from kdlab import InputError
from kdlab.losses.feature import HintLoss

SHAPES = [(3, 2, 4, 5), (2, 3, 1, 1), (1, 1, 2, 2), (4, 7)]


def literal(student, teacher):
    """The definition, one element at a time."""
    pairs = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    return sum((s - t) ** 2 for s, t in pairs) / len(pairs)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_literal_formula_in_float64(shape):
    student, teacher = randn(*shape, seed=1), randn(*shape, seed=2)
    assert HintLoss()(student, teacher).item() == pytest.approx(literal(student, teacher), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_every_loss_obeys(shape):
    check_common(HintLoss(), randn(*shape, seed=1), randn(*shape, seed=2))
    check_half_precision(HintLoss(), randn(*shape, seed=1), randn(*shape, seed=2))


def test_zero_at_a_perfect_match_and_only_there():
    teacher = randn(3, 2, 4, 4)
    assert HintLoss()(teacher.clone(), teacher) == 0
    assert HintLoss()(teacher + 1e-6, teacher) > 0


def test_doubling_the_batch_keeps_the_mean():
    student, teacher = randn(3, 2, 4, 4, seed=1), randn(3, 2, 4, 4, seed=2)
    twice = HintLoss()(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, HintLoss()(student, teacher))


def test_features_are_not_normalised():
    """Where each sample is, a weight means another thing: there a common factor would not show."""
    student, teacher = randn(3, 2, 4, 4, seed=1), randn(3, 2, 4, 4, seed=2)
    torch.testing.assert_close(HintLoss()(10 * student, 10 * teacher), 100 * HintLoss()(student, teacher))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float16, 6e4), (torch.bfloat16, 1e4)])
def test_finite_at_extreme_features(dtype, size):
    features = torch.full((2, 3, 4, 4), size, dtype=dtype)
    value, _ = check_finite(HintLoss(), features, -features)
    assert value == pytest.approx(4 * features[0, 0, 0, 0].item() ** 2)
    value, (gradient,) = check_finite(HintLoss(), features * 0, features * 0)
    assert value == 0
    assert (gradient == 0).all()


@settings(max_examples=200, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).filter(lambda shape: len(shape) != 3),
    dtype=st.sampled_from(WIDTHS),
    scale=st.floats(0, 1e4),
    seed=st.integers(0, 999),
)
def test_any_shape_dtype_and_size_gives_a_finite_value_not_below_zero(shape, dtype, scale, seed):
    student, teacher = (randn(*shape, seed=seed + i, scale=scale, dtype=dtype) for i in (0, 1))
    assert check_finite(HintLoss(), student, teacher)[0] >= 0


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4), r"\(2, 3, 4, 4\).*\(2, 5, 4, 4\).*connector"),
        (
            torch.zeros(2, 3, 4),
            torch.zeros(2, 3, 4),
            r"wanted: \(n, c, h, w\) or \(n, d\)\. Tokens .* nn.Flatten\(0, 1\)",
        ),
        (torch.zeros(2), torch.zeros(2), r"wanted: \(n, c, h, w\) or \(n, d\)\.$"),
        (torch.zeros(2, 3), torch.zeros(2, 3, 4, 4), "wanted: 2 dimensions"),
        (torch.zeros(0, 3), torch.zeros(0, 3), "nothing in it to compare"),
        (torch.zeros(2, 3).int(), torch.zeros(2, 3).int(), "floating point numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(student, teacher, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        HintLoss()(student, teacher)


def test_tokens_meet_by_the_connectors_that_are_named():
    student, teacher = randn(2, 5, 3, seed=1), randn(2, 5, 4, seed=2)
    widen = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Flatten(0, 1)).double()
    wanted = (widen[0](student) - teacher).square().mean()
    torch.testing.assert_close(HintLoss()(widen(student), torch.nn.Flatten(0, 1)(teacher)), wanted)


def test_integers_are_refused_where_shapes_are_checked():
    with pytest.raises(TypeError, match="student"):
        HintLoss()(torch.zeros(2, 3).int(), torch.zeros(2, 3).int())
