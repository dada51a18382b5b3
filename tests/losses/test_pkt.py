"""PKTLoss by its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import ANY, check_any, check_common, check_finite, check_half_precision, randn

from kdlab import InputError
from kdlab.losses.relation import PKTLoss


def literal(student, teacher, eps=1e-7):
    """Pair by pair: cosines to 0..1, rows to sum 1, and eps where the official code has it."""
    tables = []
    for x in (student, teacher):
        unit = [row / (row.square().sum().sqrt() + eps) for row in x]
        kernel = [[((a * b).sum() + 1) / 2 for b in unit] for a in unit]
        tables.append([[cell / sum(row) for cell in row] for row in kernel])
    cells = [t * ((t + eps) / (s + eps)).log() for a, b in zip(*tables, strict=True) for s, t in zip(a, b, strict=True)]
    return sum(cells) / len(cells)


def test_equals_the_literal_formula_in_float64():
    student, teacher = randn(6, 4, seed=1), randn(6, 7, seed=2)
    torch.testing.assert_close(PKTLoss()(student, teacher), literal(student, teacher), rtol=1e-10, atol=0)


def test_eps_is_inside_the_logarithm_of_both_sides():
    """Opposite embeddings have probability 0: the place of eps decides the value."""
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(PKTLoss()(student, teacher), literal(student, teacher), rtol=1e-6, atol=0)


def test_the_common_laws():
    check_common(PKTLoss(), randn(5, 3, seed=1), randn(5, 4, seed=2))
    check_half_precision(PKTLoss(), randn(6, 8, seed=1), randn(6, 9, seed=2))


def test_zero_at_a_perfect_match_and_nowhere_below():
    assert PKTLoss()(randn(6, 4), randn(6, 4)).abs() < 1e-15
    for seed in range(1, 21):
        assert PKTLoss()(randn(6, 4, seed=seed), randn(6, 4)) > 0


def test_rotation_and_the_length_of_an_embedding_change_nothing():
    student, teacher = randn(6, 8, seed=1), randn(6, 5, seed=2)
    rotation = torch.linalg.qr(randn(8, 8, seed=3))[0]
    for moved in (student @ rotation, student * torch.arange(1, 7)[:, None]):
        torch.testing.assert_close(PKTLoss()(moved, teacher), PKTLoss()(student, teacher), rtol=1e-5, atol=0)


def test_an_embedding_of_zeros_has_no_gradient_instead_of_nan():
    """The square root of a sum of squares has none at 0."""
    student, teacher = randn(5, 8, seed=1, dtype=torch.float32), randn(5, 8, seed=2, dtype=torch.float32)
    _, (usual,) = check_finite(PKTLoss(), student, teacher)
    student[2] = 0
    _, (grad,) = check_finite(PKTLoss(), student, teacher)
    assert (grad[2] == 0).all()
    assert grad.norm() < 10 * usual.norm()
    check_finite(PKTLoss(), torch.zeros(5, 8), teacher)
    check_finite(PKTLoss(), teacher, torch.zeros(5, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extreme_embeddings(dtype):
    student = (torch.eye(4, 64) * 6e4).to(dtype)
    value, _ = check_finite(PKTLoss(), student, torch.full((4, 64), -6e4).to(dtype))
    assert value > 0


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 9), d_s=st.integers(1, 9), d_t=st.integers(1, 9), **ANY)
def test_any_input_gives_a_finite_value_or_a_refusal(n, d_s, d_t, scale, dtype, seed):
    sides = [randn(n, d, seed=seed + i, scale=scale, dtype=dtype) for i, d in enumerate((d_s, d_t))]
    check_any(PKTLoss(), *sides, least=-2e-6)  # eps in the logarithm alone can take this much


def test_batches_that_cannot_be_compared_are_refused(shapes_unchecked):
    with pytest.raises(InputError, match="PKTLoss compares the samples .* got 1"):
        PKTLoss()(torch.zeros(1, 5), torch.zeros(1, 5))
    with pytest.raises(InputError, match="has 3 samples and the teacher's 4"):
        PKTLoss()(torch.zeros(3, 5), torch.zeros(4, 5))
    with pytest.raises(InputError, match="wanted: 2 dimensions"):
        PKTLoss()(torch.zeros(3, 5, 2, 2), torch.zeros(3, 5, 2, 2))
