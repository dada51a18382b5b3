"""VIDLoss by its laws."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import WIDTHS, check_common, check_finite, fresh, randn

from kdlab import InputError
from kdlab.losses.feature import VIDLoss


def make(student_channels=3, teacher_channels=2, init_variance=5.0, dtype=torch.float64):
    torch.manual_seed(1)
    return VIDLoss(student_channels, teacher_channels, init_variance).to(dtype)


def predicting(value):
    """A loss of one channel that predicts the value wherever the student is 1."""
    loss = make(1, 1)
    for parameter in loss.regressor.parameters():
        torch.nn.init.constant_(parameter, 1.0)
    torch.nn.init.constant_(loss.regressor[-1].weight, value)
    return loss


def literal(loss, student, teacher):
    """The definition, one element at a time, for maps of one size."""
    first, second, third = (layer.weight.flatten(1).tolist() for layer in loss.regressor[::2])
    variance = [math.log1p(math.exp(a)) + 1e-5 for a in loss.raw_variance.tolist()]
    total = 0.0
    for n, y, x in torch.ones(teacher[:, 0].shape).nonzero().tolist():
        hidden = student[n, :, y, x].tolist()
        for weight in (first, second):
            hidden = [max(0.0, sum(w * v for w, v in zip(row, hidden, strict=True))) for row in weight]
        mu = [sum(w * v for w, v in zip(row, hidden, strict=True)) for row in third]
        for m, t, var in zip(mu, teacher[n, :, y, x].tolist(), variance, strict=True):
            total += 0.5 * ((m - t) ** 2 / var + math.log(var))
    return total / teacher.numel()


def test_equals_the_literal_formula_in_float64():
    loss, student, teacher = make(3, 2), randn(2, 3, 4, 3, seed=1), randn(2, 2, 4, 3, seed=2)
    torch.nn.init.normal_(loss.raw_variance)
    assert loss(student, teacher).item() == pytest.approx(literal(loss, student, teacher), rel=1e-12)


@pytest.mark.parametrize("size", [(4, 3), (2, 2), (1, 1)])
def test_what_every_loss_obeys(size):
    check_common(make(), randn(2, 3, 4, 3, seed=1), randn(2, 2, *size, seed=2))


@pytest.mark.parametrize("swap", [False, True])
def test_the_larger_map_is_pooled(swap):
    large, small = randn(2, 3, 8, 8, seed=1), randn(2, 3, 4, 4, seed=2)
    pooled, loss = F.avg_pool2d(large, 2), make(3, 3)
    if swap:
        torch.testing.assert_close(loss(small, large), loss(small, pooled))
    else:
        torch.testing.assert_close(loss(large, small), loss(pooled, small))


@pytest.mark.parametrize("start", [2e-5, 0.1, 5.0, 100.0, 1e6])
def test_every_variance_starts_where_it_was_told(start):
    torch.testing.assert_close(make(init_variance=start).variance.double(), torch.full((2,), start).double(), rtol=1e-5,
                               atol=1e-8)  # fmt: skip
    torch.testing.assert_close(VIDLoss(3, 7).variance, torch.full((7,), 5.0))  # the official one


def test_variance_and_prediction_are_parameters_that_learn():
    """In a plain list they would be in no optimiser and no state_dict, and the loss stay a scaled squared error."""
    loss, student, teacher = make(), randn(4, 3, 4, 4, seed=1), randn(4, 2, 4, 4, seed=2)
    assert {"raw_variance", "regressor.0.weight", "regressor.2.weight", "regressor.4.weight"} == set(loss.state_dict())
    assert {id(p) for p in loss.parameters()} == {id(p) for p in loss.state_dict(keep_vars=True).values()}
    before = loss(student, teacher)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss(student, teacher).backward()
        assert all(p.grad.abs().sum() > 0 for p in loss.parameters())
        optimizer.step()
    error = (loss.regressor(student) - teacher).square().mean((0, 2, 3))
    torch.testing.assert_close(loss.variance, error, rtol=0.1, atol=0)  # where the likelihood is highest
    assert loss(student, teacher) < before


def test_below_zero_where_a_good_prediction_has_a_small_variance():
    loss, ones = predicting(1.0), torch.ones(2, 1, 2, 2).double()
    assert loss(ones, ones).item() == pytest.approx(0.5 * math.log(5))  # a perfect match: the variance alone
    loss.raw_variance.data.fill_(-5.0)
    assert loss(ones, ones) < 0


def test_least_at_a_perfect_match():
    ones = torch.ones(2, 1, 2, 2).double()
    assert predicting(1.0)(ones, ones) < predicting(1.1)(ones, ones) < predicting(2.0)(ones, ones)


def test_doubling_the_batch_keeps_the_mean():
    loss, student, teacher = make(), randn(3, 3, 4, 4, seed=1), randn(3, 2, 4, 4, seed=2)
    torch.testing.assert_close(loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)), loss(student, teacher))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_half_precision_is_compared_in_float32(dtype):
    loss, student, teacher = make(dtype=torch.float32), randn(2, 3, 4, 4, seed=1), randn(2, 2, 4, 4, seed=2)
    student, teacher = student.to(dtype), teacher.to(dtype)
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))
    assert loss.to(dtype)(student, teacher).dtype == torch.promote_types(dtype, torch.float32)
    assert loss.variance.dtype == torch.promote_types(dtype, torch.float32)


def test_autocast_leaves_the_comparison_in_float32():
    loss, student = predicting(1.0).float(), torch.ones(2, 1, 2, 2)
    loss.raw_variance.data.fill_(-20.0)
    teacher = student + 2**-10  # nothing in bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student, teacher))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float16, 6e4), (torch.bfloat16, 1e4)])
def test_finite_at_extreme_features(dtype, size):
    loss = make(dtype=torch.float32)
    student, teacher = torch.full((2, 3, 4, 4), size, dtype=dtype), torch.full((2, 2, 4, 4), -size, dtype=dtype)
    check_finite(loss, student, teacher)
    check_finite(loss, student * 0, teacher * 0)
    for extreme in (-1e4, 1e4):
        loss.raw_variance.data.fill_(extreme)
        check_finite(loss, student / size, teacher / size)


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(1, 4),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    sizes=st.tuples(*[st.integers(1, 6)] * 4),
    dtype=st.sampled_from(WIDTHS),
    scale=st.floats(0, 1e4),
    seed=st.integers(0, 999),
)
def test_any_shape_dtype_and_size_gives_a_finite_value(n, channels, sizes, dtype, scale, seed):
    student = randn(n, channels[0], *sizes[:2], seed=seed, scale=scale, dtype=dtype)
    teacher = randn(n, channels[1], *sizes[2:], seed=seed + 1, scale=scale, dtype=dtype)
    check_finite(make(*channels, dtype=torch.float32), student, teacher)


@pytest.mark.parametrize("variance", [0.0, -1.0, 1e-5, float("nan"), float("inf")])
def test_a_variance_that_makes_no_sense_is_refused(variance):
    with pytest.raises(InputError, match="init_variance is .*above"):
        VIDLoss(3, 2, variance)


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        (torch.zeros(2, 4, 4, 4), torch.zeros(2, 2, 4, 4), "student's tensor is .*4 channels.* made for 3"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), "teacher's tensor is .*3 channels.* made for 2"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, 2, 4, 4), "batch is 2 and the teacher's 3"),
        (torch.zeros(2, 3), torch.zeros(2, 2), "wanted: 4 dimensions"),
        (torch.zeros(2, 3, 4, 4).int(), torch.zeros(2, 2, 4, 4), "floating point numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(student, teacher, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        fresh(make(dtype=torch.float32), student, teacher)
