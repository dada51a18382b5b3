"""Laws that every loss obeys, one function each. A side is a tensor, or a tuple or list of tensors."""

import copy

import torch
from hypothesis import strategies as st

from kdlab import InputError

WIDTHS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ANY = {  # for @given, beside the sizes that a loss has
    "scale": st.floats(0, 1e4),
    "dtype": st.sampled_from([*WIDTHS, torch.int64]),
    "seed": st.integers(0, 999),
}


def randn(*shape, seed=0, scale=1.0, dtype=torch.float64):
    """The same numbers for the same shape and seed; drawn in float64, scaled, then rounded."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def flat(side):
    """The tensors of a side, in order."""
    return [side] if isinstance(side, torch.Tensor) else [tensor for part in side for tensor in flat(part)]


def like(side, tensors):
    """The given tensors in the structure of ``side``; they come from an iterator."""
    return next(tensors) if isinstance(side, torch.Tensor) else type(side)(like(part, tensors) for part in side)


def mapped(f, side):
    """The side with f applied to each of its tensors."""
    return like(side, map(f, flat(side)))


def fresh(loss, *sides):
    """The loss on copies, from one seed: calls cannot disturb each other, even where a loss draws or remembers."""
    torch.manual_seed(0)
    return copy.deepcopy(loss)(*sides)


def check_common(loss, student, teacher, *rest):
    """Gradient to the student and never to the teacher, equal to finite differences; scalar; inputs not changed.

    Give small float64 tensors, away from kinks; a loss with weights of its own must be in float64 too.
    """
    student = mapped(lambda x: x.detach().clone().requires_grad_(), student)
    teacher = mapped(lambda x: x.detach().clone().requires_grad_(), teacher)
    before = [x.detach().clone() for x in flat((student, teacher, *rest))]

    value = fresh(loss, student, teacher, *rest)
    assert value.shape == ()
    assert value.dtype == torch.float64
    value.backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in flat(student))
    assert all(x.grad is None for x in flat(teacher))
    assert all(torch.equal(x, y) for x, y in zip(flat((student, teacher, *rest)), before, strict=True))

    def of_student(*tensors):
        return fresh(loss, like(student, iter(tensors)), mapped(torch.Tensor.detach, teacher), *rest)

    assert torch.autograd.gradcheck(of_student, tuple(flat(student)))


def check_half_precision(loss, student, teacher, *rest):
    """Half precision is compared in float32, and autocast does not coarsen the comparison."""
    for width in (torch.bfloat16, torch.float16):
        halves = [mapped(lambda x, width=width: x.to(width), side) for side in (student, teacher)]
        value = fresh(loss, *halves, *rest)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, fresh(loss, *(mapped(torch.Tensor.float, side) for side in halves), *rest))
    singles = [mapped(torch.Tensor.float, side) for side in (student, teacher)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = fresh(loss, *singles, *rest)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, fresh(loss, *singles, *rest))


def check_finite(loss, student, teacher, *rest):
    """Value and gradient to the student are finite. Returns both: a number and the gradients' list.

    A gradient to float16 is float16, and infinite where it is above 65504; it may not be NaN.
    """
    student = mapped(lambda x: x.detach().clone().requires_grad_(x.is_floating_point()), student)
    value = fresh(loss, student, teacher, *rest)
    value.backward()
    assert value.isfinite()
    assert all((x.grad.isfinite() | (x.grad.isinf() & (x.dtype == torch.float16))).all() for x in flat(student))
    return value.item(), [x.grad for x in flat(student)]


def check_any(loss, student, teacher, *rest, least=0.0):
    """A finite value not below ``least`` and finite gradients, or a refusal; for integers a refusal alone."""
    refused = False
    try:
        value, _ = check_finite(loss, student, teacher, *rest)
    except (InputError, TypeError):  # jaxtyping's is a TypeError
        refused = True
    assert refused or (value >= least and all(x.is_floating_point() for x in flat((student, teacher))))
