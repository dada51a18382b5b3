"""DKDLoss by its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import ANY, check_any, check_common, check_finite, check_half_precision, randn

from kdlab import InputError
from kdlab.losses.response import DKDLoss, KDLoss

TARGET = torch.tensor([0, 4, 2, 2, 1, 3])


def logits(seed, n=6, k=5, scale=3.0, dtype=torch.float64):
    return randn(n, k, seed=seed, scale=scale, dtype=dtype)


def literal(student, teacher, target, alpha, beta, T):
    """Two distributions a network: (target, rest), and the rest among itself; one image at a time."""
    total = 0.0
    for z_s, z_t, y in zip(student, teacher, target.tolist(), strict=True):
        pairs, others = [], []
        for z in (z_s, z_t):
            p = (z / T).exp() / (z / T).exp().sum()
            rest = torch.cat([p[:y], p[y + 1 :]])
            pairs.append(torch.stack([p[y], rest.sum()]))
            others.append(rest / rest.sum())
        for weight, (s, t) in ((alpha, pairs), (beta, others)):
            total += weight * (t * (t / s).log()).sum().item()
    return T**2 * total / len(student)


@pytest.mark.parametrize(("alpha", "beta", "T"), [(1.0, 8.0, 4.0), (1.0, 0.5, 1.0), (0.0, 2.0, 0.5), (3.0, 0.0, 20.0)])
def test_equals_the_literal_formula_in_float64(alpha, beta, T):
    value = DKDLoss(alpha, beta, T)(logits(1), logits(2), TARGET).item()
    assert value == pytest.approx(literal(logits(1), logits(2), TARGET, alpha, beta, T), rel=1e-12)


def test_the_common_laws():
    check_common(DKDLoss(), logits(1), logits(2), TARGET)
    check_half_precision(DKDLoss(), logits(1), logits(2), TARGET)


def test_zero_at_a_perfect_match_and_nowhere_below():
    assert abs(DKDLoss()(logits(1) + 7.0, logits(1), TARGET)) < 1e-12  # softmax does not see a constant
    for seed in range(2, 22):
        assert DKDLoss()(logits(seed), logits(1), TARGET) > 0


def test_with_beta_the_teachers_doubt_it_is_kd():
    """KD = TCKD + (1 - p_t(target)) NCKD, image by image: KD is the special case, and why it is called decoupled."""
    T = 2.0
    student, teacher = logits(1), logits(2)
    doubt = 1 - (teacher / T).softmax(1).gather(1, TARGET[:, None]).squeeze(1)
    for n in range(6):
        one = slice(n, n + 1)
        dkd = DKDLoss(alpha=1.0, beta=doubt[n].item(), temperature=T)(student[one], teacher[one], TARGET[one])
        torch.testing.assert_close(dkd, KDLoss(T)(student[one], teacher[one]))


def test_the_reduction_is_the_mean_over_the_batch_and_not_a_sum():
    """A library sums where its option says mean, which makes the value N times too large."""
    single = DKDLoss()(logits(1), logits(2), TARGET)
    double = DKDLoss()(logits(1).repeat(2, 1), logits(2).repeat(2, 1), TARGET.repeat(2))
    torch.testing.assert_close(single, double)


def test_opposite_logits_of_200_are_finite_where_a_logarithm_of_probabilities_is_not():
    student = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]])
    value, (gradient,) = check_finite(DKDLoss(1.0, 1.0, 1.0), student, student.flip(0), torch.tensor([0, 1]))
    assert value > 199
    assert gradient.abs().sum() > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_deviation_100_at_temperature_1(dtype):
    student, teacher = logits(1, 64, 100, 100.0, dtype), logits(2, 64, 100, 100.0, dtype)
    target = torch.arange(64)
    value, _ = check_finite(DKDLoss(temperature=1.0), student, teacher, target)
    exact = DKDLoss(temperature=1.0)(student.double(), teacher.double(), target).item()
    assert value == pytest.approx(exact, rel=1e-5)


def test_the_target_is_left_out_exactly_however_large_its_logit():
    """Subtracting 1000 at the target, as is usual, does not hide a logit of 1e4, and rounds the others."""
    student, teacher = logits(1), logits(2)
    far = [z.scatter_add(1, TARGET[:, None], torch.full((6, 1), 1e4, dtype=z.dtype)) for z in (student, teacher)]
    loss = DKDLoss(alpha=0.0, temperature=1.0)
    torch.testing.assert_close(loss(*far, TARGET), loss(student, teacher, TARGET))


def test_two_classes_have_nothing_beside_the_target():
    student, teacher, target = logits(1, k=2), logits(2, k=2), torch.tensor([0, 1, 0, 1, 0, 1])
    assert DKDLoss(alpha=0.0)(student, teacher, target) == 0
    torch.testing.assert_close(DKDLoss(1.0, 8.0, 3.0)(student, teacher, target), KDLoss(3.0)(student, teacher))


def test_samples_without_a_label_are_left_out_of_the_mean():
    target = torch.tensor([0, -100, 2, -100, 1, -100])
    value = DKDLoss()(logits(1), logits(2), target)
    torch.testing.assert_close(value, DKDLoss()(logits(1)[::2], logits(2)[::2], target[::2]))
    student = logits(1).requires_grad_()
    none = DKDLoss()(student, logits(2), torch.full((6,), -100))
    none.backward()
    assert none == 0
    assert (student.grad == 0).all()


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 9), k=st.integers(1, 30), T=st.floats(0.1, 100), **ANY)
def test_any_input_gives_a_finite_value_or_a_refusal(n, k, T, scale, dtype, seed):
    sides = [logits(seed + i, n, k, scale, dtype) for i in (0, 1)]
    target = torch.randint(-1, k, (n,), generator=torch.Generator().manual_seed(seed))
    check_any(DKDLoss(temperature=T), *sides, target.where(target >= 0, -100), least=-1e-6 * T * scale - 1e-5 * T**2)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (torch.tensor([0, 5]), "numbers from 0 to 5; all must be of 0 to 4"),
        (torch.tensor([-1, 2]), "numbers from -1 to 2"),
        (torch.tensor([0.0, 1.0]), "dtype torch.float32; wanted: integers"),
        (torch.tensor([[0], [1]]), r"target is \(2, 1\); wanted: \(2\)"),
    ],
)
def test_a_target_that_is_no_class_is_refused(target, words, shapes_unchecked):
    with pytest.raises(InputError, match=words):
        DKDLoss()(torch.zeros(2, 5), torch.zeros(2, 5), target)


def test_one_class_and_senseless_weights_are_refused():
    with pytest.raises(InputError, match="compares classes with each other"):
        DKDLoss()(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([0, 0]))
    for wrong in ({"alpha": -1.0}, {"beta": float("nan")}, {"temperature": 0.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            DKDLoss(**wrong)


def test_the_official_settings_are_the_defaults():
    loss = DKDLoss()
    assert (loss.alpha, loss.beta, loss.temperature) == (1.0, 8.0, 4.0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_integers_of_any_width_are_labels(dtype):
    student, teacher, target = randn(3, 4, seed=1), randn(3, 4, seed=2), torch.tensor([0, 3, 1])
    assert DKDLoss()(student, teacher, target.to(dtype)) == DKDLoss()(student, teacher, target)
    large = [randn(3, 200, seed=seed) for seed in (1, 2)]
    target = torch.tensor([156, 3, 1])  # 156 is what -100 becomes in uint8
    assert DKDLoss()(*large, target.to(torch.uint8)) == DKDLoss()(*large, target)
