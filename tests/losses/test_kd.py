"""KDLoss by its laws."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab import InputError
from kdlab.losses import KDLoss, LabelledCrossEntropy

TEMPERATURES = [0.5, 1.0, 4.0, 20.0]


def logits(n=6, k=5, scale=3.0, seed=0, dtype=torch.float64):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * scale


def literal(student, teacher, T):
    """The definition, one image and one class at a time."""
    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        p_s, p_t = ([torch.tensor(z / T, dtype=torch.float64).exp().item() for z in zs] for zs in (z_s, z_t))
        p_s, p_t = [p / sum(p_s) for p in p_s], [p / sum(p_t) for p in p_t]
        total += sum(t * (math.log(t) - math.log(s)) for s, t in zip(p_s, p_t, strict=True))
    return T**2 * total / len(student)


@pytest.mark.parametrize("T", TEMPERATURES)
def test_equals_the_literal_formula_in_float64(T):
    student, teacher = logits(seed=1), logits(seed=2)
    torch.testing.assert_close(KDLoss(T)(student, teacher).item(), literal(student, teacher, T), rtol=1e-5, atol=1e-7)


def test_the_agreed_value_of_the_field():
    """T = 4 on one hundred classes: sum over classes, mean over the batch, times T squared; no other reduction."""
    student, teacher = logits(64, 100, 1.0, 1), logits(64, 100, 1.0, 2)
    loss = KDLoss(4.0)(student, teacher)
    reference = F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction="batchmean") * 16
    torch.testing.assert_close(loss, reference)
    elementwise = F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction="none").mean()
    torch.testing.assert_close(loss / elementwise, torch.tensor(1600.0, dtype=torch.float64))


def test_many_pixels_are_added_up_as_exactly_as_few():
    student, teacher = (logits(2**18, 21, 10.0, seed, torch.float32) for seed in (1, 2))
    exact = KDLoss()(student.double(), teacher.double())
    torch.testing.assert_close(KDLoss()(student, teacher).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("T", TEMPERATURES)
def test_zero_at_a_perfect_match_and_nowhere_below(T):
    teacher = logits()
    assert KDLoss(T)(teacher.clone(), teacher).abs() < 1e-12
    assert KDLoss(T)(teacher + 7.0, teacher).abs() < 1e-12  # softmax does not see a constant
    for seed in range(20):
        assert KDLoss(T)(logits(seed=seed + 1), teacher) > 0


def test_the_gradient_reaches_the_student_and_never_the_teacher():
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2).requires_grad_()
    KDLoss(2.0)(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("T", TEMPERATURES)
def test_the_gradient_is_the_closed_form(T):
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2)
    KDLoss(T)(student, teacher).backward()
    torch.testing.assert_close(student.grad, T / 6 * (F.softmax(student / T, 1) - F.softmax(teacher / T, 1)).detach())


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda s: KDLoss(3.0)(s, logits(seed=2)), logits(seed=1).requires_grad_())


def test_the_gradients_scale_hardly_changes_with_temperature():
    sizes = []
    for T in (5.0, 10.0, 20.0, 40.0):
        student = logits(seed=1, scale=1.0).requires_grad_()
        KDLoss(T)(student, logits(seed=2, scale=1.0)).backward()
        sizes.append(student.grad.norm().item())
    assert max(sizes) / min(sizes) < 1.2  # without the factor T squared it would be 64


def test_at_high_temperature_it_matches_centred_logits():
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2)
    KDLoss(1e4)(student, teacher).backward()
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(student.grad, gap.detach() / (6 * 5), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("T", [200.0, 1e4, 1e5])
def test_at_high_temperature_the_value_is_that_of_float64(T):
    student, teacher = logits(seed=1), logits(seed=2)
    in_float32 = KDLoss(T)(student.float(), teacher.float())
    torch.testing.assert_close(in_float32, KDLoss(T)(student, teacher).float(), rtol=1e-3, atol=0)


def test_doubling_the_batch_keeps_the_mean():
    student, teacher = logits(seed=1), logits(seed=2)
    twice = KDLoss(4.0)(student.repeat(2, 1), teacher.repeat(2, 1))
    torch.testing.assert_close(twice, KDLoss(4.0)(student, teacher))


def test_the_order_of_classes_and_images_does_not_matter():
    student, teacher = logits(seed=1), logits(seed=2)
    rows, columns = torch.randperm(6), torch.randperm(5)
    shuffled = KDLoss(4.0)(student[rows][:, columns], teacher[rows][:, columns])
    torch.testing.assert_close(shuffled, KDLoss(4.0)(student, teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e4, 6e4])
def test_finite_at_extreme_logits(dtype, size):
    student = (torch.eye(4) * size).to(dtype).requires_grad_()
    teacher = (torch.eye(4).flip(0) * size).to(dtype)
    loss = KDLoss(1.0)(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert loss > size / 2


def test_half_precision_is_compared_in_float32():
    student, teacher = logits(seed=1, dtype=torch.bfloat16), logits(seed=2, dtype=torch.bfloat16)
    torch.testing.assert_close(KDLoss(4.0)(student, teacher), KDLoss(4.0)(student.float(), teacher.float()))


def test_autocast_does_not_coarsen_it():
    student, teacher = logits(seed=1, dtype=torch.float32), logits(seed=2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = KDLoss(4.0)(student, teacher)
    torch.testing.assert_close(loss, KDLoss(4.0)(student, teacher))


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(1, 9), k=st.integers(2, 50), T=st.floats(0.1, 100), scale=st.floats(0, 1e4), seed=st.integers(0, 999)
)
def test_any_shape_and_size_gives_a_finite_value_not_below_zero(n, k, T, scale, seed):
    student = logits(n, k, scale, seed, torch.float32).requires_grad_()
    loss = KDLoss(T)(student, logits(n, k, scale, seed + 1, torch.float32))
    loss.backward()
    assert loss.isfinite()
    assert loss > -1e-6 * max(1, T**2)  # what float32 rounds off the divergence, times T squared
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_makes_no_sense_is_refused(temperature):
    with pytest.raises(InputError, match="temperature is .*finite number above 0"):
        KDLoss(temperature)


def test_shapes_that_differ_are_named(shapes_unchecked):
    with pytest.raises(InputError, match=r"\(4, 5\).*\(4, 6\).*of the same sizes"):
        KDLoss()(torch.zeros(4, 5), torch.zeros(4, 6))


def test_checked_shapes_name_the_argument():
    with pytest.raises(TypeError, match="'teacher'"):
        KDLoss()(torch.zeros(4, 5), torch.zeros(4, 6))


def test_cross_entropy_over_the_labelled_images_only():
    z = logits(4, 3)
    y = torch.tensor([0, -100, 2, -100])
    torch.testing.assert_close(LabelledCrossEntropy()(z, y), F.cross_entropy(z[[0, 2]], y[[0, 2]]))
    torch.testing.assert_close(LabelledCrossEntropy()(z, y.clamp(min=1)), F.cross_entropy(z, y.clamp(min=1)))


def test_a_batch_without_labels_costs_nothing_instead_of_nan():
    z = logits(4, 3).requires_grad_()
    loss = LabelledCrossEntropy()(z, torch.full((4,), -100))
    loss.backward()
    assert loss == 0
    assert (z.grad == 0).all()


def test_integers_of_any_width_are_labels_and_half_precision_is_widened():
    z, y = logits(4, 3, dtype=torch.bfloat16), torch.tensor([0, 1, 2, 1])
    for dtype in (torch.int32, torch.uint8):
        assert LabelledCrossEntropy()(z, y.to(dtype)) == F.cross_entropy(z.float(), y)


@pytest.mark.parametrize(
    ("teacher", "sentence"),
    [
        (torch.zeros(4, 5, dtype=torch.int64), "the teacher's tensor has dtype torch.int64"),
        (torch.zeros(4, 5, device="meta"), "student's tensor is on cpu and the teacher's on meta.*to one device"),
    ],
)
def test_the_side_that_is_wrong_is_named(teacher, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        KDLoss()(torch.zeros(4, 5), teacher)


def test_one_logit_is_no_distribution():
    with pytest.raises(InputError, match="KDLoss compares classes .* got logits of 1; wanted: at least 2. For one"):
        KDLoss()(torch.randn(4, 1), torch.randn(4, 1))
