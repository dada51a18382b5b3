"""How an answer is graded: the first thing that is wrong with it, from shape to value."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Answer = Callable[..., Any]
RTOL, ATOL = 1e-3, 1e-6  # how far an answer may be off


def ask(answer: Answer, arguments: tuple[Any, ...], want: Any, known: Mapping[Any, str]) -> str | None:
    """What is wrong with what the answer returns for these arguments, or raises; None if nothing is.

    It gets copies of the tensors: one that writes into them shall not change what is asked next.

    Args:
        want: the right value.
        known: from the value of a frequent slip to the hint for it.
    """
    copies = [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]
    got, problem = called(answer, *copies)
    return problem or compare(got, want, known)


def ask_also(problem: str | None, answer: Answer, arguments: tuple[Any, ...], want: Any, but: str) -> str | None:
    """``problem`` where there is one, else what is wrong for these arguments, after ``but``; None if nothing is."""
    if problem is None and (also := ask(answer, arguments, want, {})) is not None:
        return f"{but}: {also}"
    return problem


def ask_gradient(
    problem: str | None, answer: Answer, arguments: tuple[Any, ...], student: Tensor, teacher: Tensor, what: str
) -> str | None:
    """``problem`` where there is one, else what is wrong with where a right loss sends its gradient.

    Args:
        student: of the arguments, what must get a gradient.
        teacher: of the arguments, what must get none; where it asks for none, that is left open.
        what: what the teacher's is called in the hint.
    """
    if problem is not None:
        return problem
    none = f"the value is right, but no gradient reaches the student: detach the teacher's {what} alone."
    loss, problem = called(answer, *arguments)
    if problem is not None or not (isinstance(loss, Tensor) and loss.requires_grad):
        return problem or none
    reached = [tensor for tensor in (student, teacher) if tensor.requires_grad]
    gradients, problem = called(lambda: torch.autograd.grad(loss, reached, allow_unused=True))
    if problem is not None or gradients[0] is None:
        return problem or none
    if any(gradient is not None for gradient in gradients[1:]):
        return f"the value is right, but a gradient reaches the teacher: detach its {what}."
    return None


def without_autograd(problem: str | None, answer: Answer, arguments: tuple[Any, ...]) -> str | None:
    """``problem`` where there is one, else what is wrong with a right gradient that autograd gave."""
    if problem is not None:
        return problem
    with torch.no_grad():
        _, failed = called(answer, *arguments)
    return failed and "right, but autograd found it; wanted: the formula, which needs none."


def called(answer: Answer, *arguments: Any) -> tuple[Any, str | None]:
    """What the answer returns for these arguments and None, or None and what it raised."""
    try:
        return answer(*arguments), None
    except Exception as error:  # whatever a learner's code raises is part of the answer
        return None, f"your code raised {type(error).__name__}: {error}"


def compare(got: Any, want: Any, known: Mapping[Any, str]) -> str | None:
    """The first thing wrong: type, shape, NaN, a known slip, all 0, sign, scale, value; None if nothing is."""
    if got is None or got is ...:
        return "no answer yet."
    if isinstance(got, list | tuple) and any(part is None or part is ... for part in got):
        return "no answer yet: there is a None among your numbers."
    given, got = got, _tensor(got)
    if got is None:
        return f"you gave a {type(given).__name__}; wanted: a number or a tensor."
    want = torch.as_tensor(want, dtype=torch.float64).detach()
    if got.shape != want.shape:
        return f"shape: yours is {tuple(got.shape)}, wanted {tuple(want.shape)}."
    if not got.isfinite().all():
        return "your answer is not finite: a division by 0, or the logarithm of 0?"
    if _close(got, want):
        return None
    for slip, hint in known.items():
        if _close(got, torch.as_tensor(slip, dtype=torch.float64).detach()):
            return hint
    if want.any() and not got.any():
        return "your answer is 0 everywhere."
    if (want >= 0).all() and (got < 0).any():
        return "sign: part of your answer is below 0; nothing here can be."
    ratio = (got.sum() / want.sum()).item()
    if abs(ratio - 1) > RTOL and _close(got, want * ratio) and (got.numel() > 1 or _is_plain_factor(ratio)):
        return f"scale: your answer is {ratio:.4g} times what it should be."
    if got.numel() == 1 and want.any():
        return f"value: yours is {got.item():.4g}, {ratio:.4g} times what is wanted."
    first = int((~torch.isclose(got, want, rtol=RTOL, atol=ATOL)).flatten().nonzero()[0])
    which = f"number {first + 1} of {got.numel()} is" if got.numel() > 1 else "yours is"
    return f"value: {which} {got.flatten()[first]:.4g}, wanted {want.flatten()[first]:.4g}."


def _is_plain_factor(ratio: float) -> bool:
    """Whether a factor was forgotten, such as 2, 1/16 or 1,000; any two numbers have *some* ratio."""
    factor = max(abs(ratio), 1 / abs(ratio))
    return factor > 100 or abs(factor - round(factor)) < RTOL * factor


def unrounded(got: Any, want: float) -> Any:
    """``want`` where the answer is that number rounded to two or three digits, as people write it; else the answer."""
    found = number(got)
    return want if found is not None and abs(found - want) < 0.03 * abs(want) else got


def number(got: Any) -> float | None:
    """The finite number that an answer is, also where a tensor or an array holds it; None where it is none."""
    found = _tensor(got)
    return found.item() if found is not None and found.numel() == 1 and found.isfinite() else None


def _tensor(got: Any) -> Tensor | None:
    if isinstance(got, list | tuple):  # of numbers with a gradient, PyTorch would warn the learner
        got = [part.detach() if isinstance(part, Tensor) else part for part in got]
    try:
        return torch.as_tensor(got, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _close(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and torch.allclose(got, want, rtol=RTOL, atol=ATOL)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Numbers from 0 to 1, the same at every call."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of mean 0 and variance 1, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def say(problem: str | None) -> bool:
    """Tell the learner; True where nothing is wrong."""
    print("✓ Right." if problem is None else f"✗ Not yet: {problem}")
    return problem is None
