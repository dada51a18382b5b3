"""SPLoss by its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import ANY, check_any, check_common, check_finite, check_half_precision, randn

from kdlab import InputError
from kdlab.losses.relation import SPLoss


def literal(student, teacher, p=2):
    grams = []
    for x in (student, teacher):
        rows = [[(a * b).sum() for b in x] for a in x]
        grams.append([[g / sum(abs(h) ** p for h in row) ** (1 / p) for g in row] for row in rows])
    gaps = [(s - t) ** 2 for a, b in zip(*grams, strict=True) for s, t in zip(a, b, strict=True)]
    return sum(gaps) / len(student) ** 2


def test_equals_the_literal_formula_in_float64():
    student, teacher = randn(5, 3, 4, 4, seed=1), randn(5, 7, 2, 2, seed=2)
    torch.testing.assert_close(SPLoss()(student, teacher), literal(student, teacher))


def test_rows_are_normalised_by_their_l2_norm_and_not_l1():
    """normalize(x, 1) reads like a dimension and is the order of the norm."""
    student, teacher = randn(5, 8, seed=1), randn(5, 8, seed=2)
    assert SPLoss()(student, teacher) > 2 * literal(student, teacher, p=1)


def test_the_product_comes_first_then_the_norm():
    """Were the features normalised before, an image's size would not matter."""
    student, teacher = randn(5, 8, seed=1), randn(5, 8, seed=2)
    larger = torch.cat([student[:1] * 10, student[1:]])
    assert (SPLoss()(larger, teacher) - SPLoss()(student, teacher)).abs() > 1e-3


def test_the_common_laws():
    check_common(SPLoss(), randn(4, 2, 3, seed=1), randn(4, 5, seed=2))
    check_half_precision(SPLoss(), randn(6, 8, 2, 2, seed=1), randn(6, 9, seed=2))


def test_zero_at_a_perfect_match_and_nowhere_below():
    assert SPLoss()(randn(6, 4), randn(6, 4)) == 0
    for seed in range(1, 21):
        assert SPLoss()(randn(6, 4, seed=seed), randn(6, 4)) > 0


def test_rotation_and_scale_change_nothing():
    student, teacher = randn(6, 8, seed=1), randn(6, 5, seed=2)
    rotation = torch.linalg.qr(randn(8, 8, seed=3))[0]
    for moved in (student @ rotation, student * 1e3, student * 1e-3, -student):
        torch.testing.assert_close(SPLoss()(moved, teacher), SPLoss()(student, teacher))


def test_an_image_without_any_activation_has_no_huge_gradient():
    student, teacher = randn(5, 8, seed=1, dtype=torch.float32), randn(5, 8, seed=2, dtype=torch.float32)
    _, (usual,) = check_finite(SPLoss(), student, teacher)
    student[2] = 0
    _, (grad,) = check_finite(SPLoss(), student, teacher)
    assert grad.norm() < 10 * usual.norm()
    check_finite(SPLoss(), torch.zeros(5, 8), teacher)
    check_finite(SPLoss(), teacher, torch.zeros(5, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extreme_features(dtype):
    student = torch.full((4, 64, 8, 8), 6e4).to(dtype)  # duplicates, too
    check_finite(SPLoss(), student, randn(4, 64, seed=1, scale=1e4, dtype=dtype))


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 9), d_s=st.integers(1, 9), d_t=st.integers(1, 9), **ANY)
def test_any_input_gives_a_finite_value_or_a_refusal(n, d_s, d_t, scale, dtype, seed):
    student = randn(n, d_s, 2, seed=seed, scale=scale, dtype=dtype)
    check_any(SPLoss(), student, randn(n, d_t, 1, 3, seed=seed + 1, scale=scale, dtype=dtype))


def test_batches_that_cannot_be_compared_are_refused(shapes_unchecked):
    with pytest.raises(InputError, match="SPLoss compares the samples .* got 1"):
        SPLoss()(torch.zeros(1, 5), torch.zeros(1, 5))
    with pytest.raises(InputError, match="has 3 samples and the teacher's 4"):
        SPLoss()(torch.zeros(3, 5), torch.zeros(4, 5))
    with pytest.raises(InputError, match="wanted: 2 dimensions"):
        SPLoss()(torch.zeros(3), torch.zeros(3))


def test_a_layer_of_several_tensors_is_named(shapes_unchecked):
    maps = torch.zeros(2, 3)
    with pytest.raises(InputError, match="the student gives a tuple; wanted: one tensor.*item=..."):
        SPLoss()((maps, maps), maps)
    with pytest.raises(InputError, match="the teacher gives a tuple"):
        SPLoss()(maps, (maps, maps))
