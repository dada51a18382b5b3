"""DISTLoss by its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import ANY, check_any, check_common, check_finite, check_half_precision, randn

from kdlab import InputError
from kdlab.losses.response import DISTLoss


def logits(seed, n=6, k=5, scale=3.0, dtype=torch.float64):
    return randn(n, k, seed=seed, scale=scale, dtype=dtype)


def literal(student, teacher, beta, gamma, T):
    """Pearson's correlation of every row and every column, one at a time, with the official 1e-8."""

    def correlation(a, b):
        a, b = a - a.mean(), b - b.mean()
        return ((a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt() + 1e-8)).item()

    p_s, p_t = ((z / T).exp() / (z / T).exp().sum(1, keepdim=True) for z in (student, teacher))
    rows = [correlation(a, b) for a, b in zip(p_s, p_t, strict=True)]
    columns = [correlation(a, b) for a, b in zip(p_s.T, p_t.T, strict=True)]
    return T**2 * (beta * (1 - sum(rows) / len(rows)) + gamma * (1 - sum(columns) / len(columns)))


@pytest.mark.parametrize(("beta", "gamma", "T"), [(1.0, 1.0, 4.0), (1.0, 1.0, 1.0), (2.0, 0.0, 0.5), (0.0, 3.0, 20.0)])
def test_equals_the_literal_formula_in_float64(beta, gamma, T):
    value = DISTLoss(beta, gamma, T)(logits(1), logits(2)).item()
    assert value == pytest.approx(literal(logits(1), logits(2), beta, gamma, T), rel=1e-12)


def test_the_common_laws():
    check_common(DISTLoss(), logits(1), logits(2))
    check_half_precision(DISTLoss(), logits(1), logits(2))


def test_a_perfect_student_scores_0():
    """With the sign of a relation wrong, as in a variant in use, it scores 1."""
    assert DISTLoss()(logits(1), logits(1)).abs() < 1e-4
    assert DISTLoss(beta=0.0)(logits(1), logits(1)).abs() < 1e-4
    for seed in range(2, 22):
        assert DISTLoss()(logits(seed), logits(1)) > 0.1


def probabilities_as_logits(p, T):
    return p.log() * T


def test_a_sign_flipped_relation_scores_the_most():
    """p -> 2/k - p turns every correlation to -1; with a relation's sign wrong it scores like a perfect one."""
    p = 0.2 + 0.05 * torch.tanh(logits(1)).softmax(1)
    p = p / p.sum(1, keepdim=True)
    student, teacher = probabilities_as_logits(2 / 5 - p, 1.0), probabilities_as_logits(p, 1.0)
    for beta, gamma in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        torch.testing.assert_close(
            DISTLoss(beta, gamma, 1.0)(student, teacher).item(), 2 * (beta + gamma), rtol=1e-3, atol=0
        )


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.5, 0.1), (0.01, 1.0)])
def test_a_positive_affine_map_of_the_probabilities_changes_nothing(a, b):
    T = 2.0
    student = probabilities_as_logits(a * (logits(1) / T).softmax(1) + b, T)  # softmax divides by a + k b: affine too
    torch.testing.assert_close(DISTLoss(temperature=T)(student, logits(1)).item(), 0.0, rtol=0, atol=5e-3)
    torch.testing.assert_close(
        DISTLoss(temperature=T)(student, logits(2)), DISTLoss(temperature=T)(logits(1), logits(2)), rtol=1e-3, atol=0
    )


def test_doubling_the_batch_keeps_the_mean():
    double = DISTLoss()(logits(1).repeat(2, 1), logits(2).repeat(2, 1))
    torch.testing.assert_close(double, DISTLoss()(logits(1), logits(2)), rtol=1e-5, atol=0)


def test_each_pixel_of_a_map_is_a_sample():
    maps = [randn(2, 5, 3, 4, seed=seed) for seed in (1, 2)]
    rows = [torch.stack([m[n, :, y, x] for n in range(2) for y in range(3) for x in range(4)]) for m in maps]
    torch.testing.assert_close(DISTLoss()(*maps), DISTLoss()(*rows))
    assert DISTLoss()(maps[0][:1], maps[1][:1]) > 0  # one image has many pixels


@pytest.mark.parametrize("constant", ["student", "teacher", "both"])
def test_rows_and_columns_that_do_not_vary_have_no_gradient_instead_of_a_huge_one(constant):
    student, teacher = logits(1, dtype=torch.float32), logits(2, dtype=torch.float32)
    for side in {"student": [student], "teacher": [teacher], "both": [student, teacher]}[constant]:
        side[:] = 1.7
    value, (gradient,) = check_finite(DISTLoss(temperature=1.0), student, teacher)
    assert value == pytest.approx(2.0)
    assert gradient.abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extreme_logits(dtype):
    student = (torch.eye(4) * 6e4).to(dtype)
    value, _ = check_finite(DISTLoss(temperature=1.0), student, student.flip(0))
    assert 2 < value <= 4


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 9), k=st.integers(1, 30), T=st.floats(0.1, 100), **ANY)
def test_any_input_gives_a_finite_value_or_a_refusal(n, k, T, scale, dtype, seed):
    sides = [logits(seed + i, n, k, scale, dtype) for i in (0, 1)]
    check_any(DISTLoss(temperature=T), *sides, least=-1e-5 * T**2)


def test_one_sample_and_one_class_are_refused(shapes_unchecked):
    with pytest.raises(InputError, match="compares the samples of a batch with each other and got 1"):
        DISTLoss()(torch.zeros(1, 5), torch.zeros(1, 5))
    with pytest.raises(InputError, match="compares classes with each other"):
        DISTLoss()(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(InputError, match=r"wanted: 4 dimensions"):
        DISTLoss()(torch.zeros(4, 5, 6), torch.zeros(4, 5, 6))
    with pytest.raises(InputError, match="gamma is -1"):
        DISTLoss(gamma=-1.0)


def test_the_settings_for_cifar_are_the_defaults():
    loss = DISTLoss()
    assert (loss.beta, loss.gamma, loss.temperature) == (1.0, 1.0, 4.0)


def test_a_layer_of_several_tensors_is_named(shapes_unchecked):
    maps = torch.zeros(2, 3)
    with pytest.raises(InputError, match="the student gives a tuple; wanted: one tensor.*item=..."):
        DISTLoss()((maps, maps), maps)
    with pytest.raises(InputError, match="the teacher gives a tuple"):
        DISTLoss()(maps, (maps, maps))
