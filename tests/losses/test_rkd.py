"""RKDLoss by its laws."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import ANY, check_any, check_common, check_finite, check_half_precision, randn

from kdlab import InputError
from kdlab.losses.relation import RKDLoss


def literal(student, teacher, distance_weight=25.0, angle_weight=50.0):
    """All differences of all pairs, and all products of those at every vertex."""

    def relations(x):
        difference = x[None] - x[:, None]
        distances = difference.square().sum(2).clamp(min=1e-300).sqrt() * (1 - torch.eye(len(x)))
        e = F.normalize(difference, dim=2)
        return distances / distances[distances > 0].mean(), torch.einsum("jid,jkd->jik", e, e)

    (d_s, a_s), (d_t, a_t) = relations(student), relations(teacher.detach())
    return distance_weight * F.smooth_l1_loss(d_s, d_t) + angle_weight * F.smooth_l1_loss(a_s, a_t)


def gradient(loss, student, teacher):
    student = student.clone().requires_grad_()
    loss(student, teacher).backward()
    return student.grad


@pytest.mark.parametrize("weights", [(25.0, 50.0), (1.0, 2.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize(("n", "d_s", "d_t"), [(2, 3, 3), (9, 4, 4), (12, 3, 30), (50, 40, 7)])
def test_value_and_gradient_equal_the_literal_formula(n, d_s, d_t, weights):
    student, teacher, loss = randn(n, d_s, seed=1), randn(n, d_t, seed=2), RKDLoss(*weights)
    expected = literal(student, teacher, *weights)
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss(student.float(), teacher.float()).double(), expected, rtol=1e-5, atol=1e-7)
    exact = gradient(lambda s, t: literal(s, t, *weights), student, teacher)
    torch.testing.assert_close(gradient(loss, student, teacher), exact, rtol=1e-8, atol=1e-10)
    in_float32 = gradient(loss, student.float(), teacher.float()).double()
    assert (in_float32 - exact).norm() <= 1e-5 * exact.norm() + 1e-6


def test_more_triples_than_fit_one_slab():
    student, teacher = randn(70, 5, seed=1), randn(70, 5, seed=2)
    torch.testing.assert_close(RKDLoss()(student, teacher), literal(student, teacher), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient(RKDLoss(), student, teacher), gradient(literal, student, teacher))


def test_the_common_laws():
    check_common(RKDLoss(), randn(5, 3, seed=1), randn(5, 4, seed=2))
    check_half_precision(RKDLoss(), randn(8, 16, seed=1), randn(8, 16, seed=2))


def test_zero_at_a_perfect_match_and_nowhere_below():
    assert RKDLoss()(randn(6, 4), randn(6, 4)) < 1e-12
    for seed in range(1, 21):
        assert RKDLoss()(randn(6, 4, seed=seed), randn(6, 4)) > 0


def test_rotation_translation_and_scale_change_nothing():
    student, teacher = randn(8, 6, seed=1), randn(8, 6, seed=2)
    rotation = torch.linalg.qr(randn(6, 6, seed=3))[0]
    for moved in (student @ rotation, student + 7.0, student * 100, -student):
        torch.testing.assert_close(RKDLoss()(moved, teacher), RKDLoss()(student, teacher))


def test_embeddings_are_taken_as_they_are():
    """A library l2-normalises them first by default, which gives another value."""
    student, teacher = randn(8, 6, seed=1), randn(8, 6, seed=2)
    other = RKDLoss()(F.normalize(student), F.normalize(teacher))
    assert (other - RKDLoss()(student, teacher)).abs() > 0.01


def test_a_part_of_weight_0_is_skipped():
    """In a library a part given as None, which is documented to skip it, is an error."""
    student, teacher = randn(8, 6, seed=1), randn(8, 6, seed=2)
    parts = RKDLoss(25.0, 0.0)(student, teacher) + RKDLoss(0.0, 50.0)(student, teacher)
    torch.testing.assert_close(RKDLoss()(student, teacher), parts)
    far = randn(8, 6, scale=1e25, dtype=torch.float32)  # where the angles are NaN
    assert RKDLoss(angle_weight=0.0)(far, teacher.float()).isfinite()
    with pytest.raises(InputError, match="both 0"):
        RKDLoss(0.0, 0.0)
    with pytest.raises(InputError, match="angle_weight is -1"):
        RKDLoss(angle_weight=-1.0)


@pytest.mark.parametrize("nudge", [0.0, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicates_do_not_blow_up_the_gradient(dtype, nudge):
    """One image twice in a batch, perhaps rounded differently: a gradient of 1e11 where a root is taken at 1e-12."""
    student, teacher = randn(8, 16, seed=1, dtype=dtype), randn(8, 16, seed=2, dtype=dtype)
    student[1] = student[0] * (1 + nudge)
    student[5:] = student[4]
    _, (grad,) = check_finite(RKDLoss(), student, teacher)
    _, (usual,) = check_finite(RKDLoss(), randn(8, 16, seed=1, dtype=dtype), teacher)
    assert grad.norm() < 10 * usual.norm()


def test_duplicates_of_the_teacher_and_a_collapsed_student():
    teacher = randn(6, 4, seed=2)
    teacher[1] = teacher[0]
    check_finite(RKDLoss(), randn(6, 4, seed=1), teacher)
    for collapsed in (torch.zeros(6, 4), torch.full((6, 4), 3.3), randn(6, 4, scale=1e-33, dtype=torch.float32)):
        value, (grad,) = check_finite(RKDLoss(), collapsed, teacher.float())
        assert value > 0
        assert (grad == 0).all()


def test_near_neighbours_far_from_the_origin_keep_their_digits():
    """The Gram matrix of float32 has none left of a distance of 1e-3 at a norm of 30."""
    student = 10 + randn(6, 9, seed=1, scale=1e-3, dtype=torch.float32)
    teacher = randn(6, 9, seed=2, dtype=torch.float32)
    exact = literal(student.double(), teacher.double()).item()
    assert RKDLoss()(student, teacher).item() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extreme_embeddings(dtype):
    student, teacher = (randn(6, 512, seed=seed).clamp(-1, 1) * 6e4 for seed in (1, 2))
    value, _ = check_finite(RKDLoss(), student.to(dtype), teacher.to(dtype))
    assert value == pytest.approx(literal(student.to(dtype).double(), teacher.to(dtype).double()).item(), rel=1e-4)


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 9), d_s=st.integers(1, 9), d_t=st.integers(1, 9), **ANY)
def test_any_input_gives_a_finite_value_or_a_refusal(n, d_s, d_t, scale, dtype, seed):
    sides = [randn(n, d, seed=seed + i, scale=scale, dtype=dtype) for i, d in enumerate((d_s, d_t))]
    check_any(RKDLoss(), *sides)


def test_batches_that_cannot_be_compared_are_refused(shapes_unchecked):
    with pytest.raises(InputError, match="RKDLoss compares the samples .* got 1"):
        RKDLoss()(torch.zeros(1, 5), torch.zeros(1, 5))
    with pytest.raises(InputError, match="has 3 samples and the teacher's 4"):
        RKDLoss()(torch.zeros(3, 5), torch.zeros(4, 5))
    with pytest.raises(InputError, match="wanted: 2 dimensions"):
        RKDLoss()(torch.zeros(3, 5, 2, 2), torch.zeros(3, 5, 2, 2))
