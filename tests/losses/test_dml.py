"""DMLLoss by its laws: KD at temperature 1, from a peer."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import ANY, check_any, check_common, check_half_precision, randn

from kdlab.losses.response import DMLLoss


def logits(seed, n=6, k=5, scale=3.0, dtype=torch.float64):
    return randn(n, k, seed=seed, scale=scale, dtype=dtype)


def literal(student, peer):
    p_s, p_t = (z.exp() / z.exp().sum(1, keepdim=True) for z in (student, peer))
    return sum((t * (t / s).log()).sum() for s, t in zip(p_s, p_t, strict=True)) / len(student)


def test_equals_the_literal_formula_in_float64():
    """KL(peer || student), in this order, without softening."""
    torch.testing.assert_close(DMLLoss()(logits(1), logits(2)), literal(logits(1), logits(2)))
    assert (DMLLoss()(logits(1), logits(2)) - literal(logits(2), logits(1))).abs() > 0.1


def test_the_common_laws():
    check_common(DMLLoss(), logits(1), logits(2))
    check_half_precision(DMLLoss(), logits(1), logits(2))


def test_zero_at_a_perfect_match_and_nowhere_below():
    assert DMLLoss()(logits(1), logits(1)).abs() < 1e-12
    for seed in range(2, 22):
        assert DMLLoss()(logits(seed), logits(1)) > 0


def test_two_students_teach_each_other_without_reaching_into_each_other():
    """One backward pass through both losses gives each the gradient of its own."""
    a, b = logits(1).requires_grad_(), logits(2).requires_grad_()
    (DMLLoss()(a, b) + DMLLoss()(b, a)).backward()
    alone = logits(1).requires_grad_()
    DMLLoss()(alone, logits(2)).backward()
    torch.testing.assert_close(a.grad, alone.grad)


def test_doubling_the_batch_keeps_the_mean():
    double = DMLLoss()(logits(1).repeat(2, 1), logits(2).repeat(2, 1))
    torch.testing.assert_close(double, DMLLoss()(logits(1), logits(2)))


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 9), k=st.integers(1, 30), **ANY)
def test_any_input_gives_a_finite_value_or_a_refusal(n, k, scale, dtype, seed):
    sides = [logits(seed + i, n, k, scale, dtype) for i in (0, 1)]
    check_any(DMLLoss(), *sides, least=-1e-5 - 1e-6 * scale)
