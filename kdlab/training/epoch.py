"""One pass over the training data."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from kdlab import processes
from kdlab.distill.term import is_column
from kdlab.errors import InputError, NonFiniteLossError
from kdlab.shapes import unchecked
from kdlab.training.device import to_device

LOOK_EVERY = 10  # steps between two looks at the losses: each look makes the processor wait for the accelerator


@dataclass
class Epoch:
    """How the optimiser's steps of an epoch are taken; the arguments are those of :func:`kdlab.training.fit`.

    Args:
        parallel: the objective, as :func:`kdlab.processes.in_parallel` gives it.
        loader: yields the pieces of the batches, ``accumulate`` for each.
    """

    objective: nn.Module
    parallel: Any
    loader: DataLoader
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None
    precision: Literal["fp32", "bf16"]
    max_norm: float | None
    accumulate: int

    def __post_init__(self) -> None:
        self._alone = processes.count() == 1
        # Of the buffers those that are finite: a mask may hold -inf for good.
        student: Any = self.objective.student
        buffers = [name for name, tensor in student.named_buffers() if tensor.isfinite().all()]
        self._finite = [name for name, _ in student.named_parameters()] + buffers

    def run(self, epoch: int, epochs: int, bar: tqdm) -> dict[str, float]:
        """The mean of each loss over the steps of all processes.

        Args:
            epoch: from 0, of so many ``epochs``.
            bar: is moved at each look at the losses, and shows the mean of those that were looked at.

        Raises:
            InputError: a batch that is no tuple or list, or another number of them than the loader says; losses without
                a total, that are no scalars, or of other names than before.
            NonFiniteLossError: a loss, or a weight after the last step, is NaN or infinite.
        """
        device = next(self.objective.parameters()).device
        # A Distiller has schedules.
        set_epoch: Callable[[float, int], None] | None = getattr(self.objective, "set_epoch", None)
        student: Any = self.objective.student
        pieces = len(self.loader)
        steps = pieces // self.accumulate
        names: list[str] = []
        seen: list[Tensor] = []
        number = looked = 0
        self._forget_gradients()
        for number, batch in enumerate(self.loader, start=1):
            if number > pieces:  # it may have no end
                break
            before, piece = divmod(number - 1, self.accumulate)
            if set_epoch is not None:
                set_epoch(epoch + before / steps, epochs)
            last_piece = piece == self.accumulate - 1
            with nullcontext() if number == 1 else unchecked():
                losses = self._backward(to_device(batch, device), device, last_piece)
            if names != list(losses):
                names = _checked(losses, names)
                # One tensor for all: small ones of many steps would lie scattered where the next step's large ones go.
                recent = torch.empty(LOOK_EVERY, self.accumulate, len(names), device=device)
                cells = recent.flatten().unbind()
            place = (number - 1 - looked * self.accumulate) * len(names)
            torch._foreach_copy_(cells[place : place + len(names)], [loss.detach() for loss in losses.values()])
            if not last_piece:
                continue
            self._step()
            step = before + 1
            if step % LOOK_EVERY == 0 or step == steps:
                rows = recent[: step - looked].mean(dim=1).cpu()
                taught = bool(getattr(self.objective, "teachers", None))  # a Distiller's
                _refuse_non_finite(rows, names, epoch * steps + looked + 1, taught)
                loss = rows[:, names.index("total")].mean().item()
                bar.set_postfix_str(f"loss {loss:.3g}", refresh=False)
                bar.update(len(rows))
                seen.append(rows)
                looked = step
        if number != pieces:
            raise InputError(
                f"the loader says that it has {pieces} batches and yields another number of them; wanted: a "
                "data set whose __len__ is what an epoch goes through."
            )
        _refuse_non_finite_weights(student, self._finite, last_step=(epoch + 1) * steps)
        return dict(zip(names, processes.mean(torch.cat(seen).mean(dim=0)).tolist(), strict=True))

    def _backward(self, batch: Any, device: torch.device, last_piece: bool) -> dict[str, Any]:
        """Add the gradient of a piece; the processes compare theirs after the last one alone."""
        _check_batch(batch)
        with nullcontext() if self._alone or last_piece else self.parallel.no_sync():
            with torch.autocast(device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext():
                losses = self.parallel(*batch)
            total = _total(losses)
            if total.requires_grad:  # not while every weight is still, or again, 0
                (total / self.accumulate if self.accumulate > 1 else total).backward()
        return losses

    def _step(self) -> None:
        if self.max_norm is not None:  # not of what the optimiser leaves as it is, whose gradients add up
            nn.utils.clip_grad_norm_(self._moved(), self.max_norm)
        self.optimizer.step()
        self._forget_gradients()
        if self.scheduler is not None:
            self.scheduler.step()

    def _forget_gradients(self) -> None:
        """What the optimiser's zero_grad does, without the profiler's mark that it sets at each call."""
        for parameter in self._moved():
            parameter.grad = None

    def _moved(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def _check_batch(batch: Any) -> None:
    """The objective takes a batch's parts one by one: of a dictionary these would be its keys, of a tensor its rows."""
    if isinstance(batch, (tuple, list)):
        return
    keys = f" with the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
    raise InputError(
        f"the loader yields a {type(batch).__name__}{keys}; wanted: what the objective takes, such as (images, "
        "labels): give the DataLoader a collate_fn."
    )


def _checked(losses: Mapping[str, Any], before: Sequence[str]) -> list[str]:
    """The names of the losses, the same at each step."""
    if before:
        raise InputError(
            f"the objective returns losses named {', '.join(losses)} and returned {', '.join(before)} in the step "
            "before; wanted: the same in the same order at each step, 0 for one that is not computed."
        )
    for name, loss in losses.items():
        if is_column(name):
            raise InputError(f"the objective returns a loss called {name!r}, which is another column of the history.")
        _check_scalar(name, loss)
    return list(losses)


def _check_scalar(name: str, loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.ndim:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise InputError(
            f"the objective returns {name!r} as {what}; wanted: a tensor of one number without dimensions, such as "
            "loss.mean()."
        )


def _total(losses: Any) -> Tensor:
    if isinstance(losses, Mapping) and "total" in losses:
        _check_scalar("total", losses["total"])
        return losses["total"]
    what = f"losses named {', '.join(losses)}" if isinstance(losses, Mapping) else f"a {type(losses).__name__}"
    raise InputError(
        f'the objective returns {what}; wanted: a dict of losses with their sum as "total". Add it to what is returned.'
    )


def _refuse_non_finite(losses: Tensor, names: Sequence[str], first_step: int, taught: bool) -> None:
    bad = ~losses.isfinite()
    if bad[:, names.index("total")].any():  # a loss of weight 0 is only reported
        step = int(bad[:, names.index("total")].nonzero()[0])
        terms = [name for name, is_bad in zip(names, bad[step].tolist(), strict=True) if is_bad and name != "total"]
        values = ", ".join(f"{name} = {losses[step, names.index(name)].item()}" for name in terms or ["total"])
        look_at = "the data and at what the teacher puts out for it" if taught else "the data"
        raise NonFiniteLossError(
            f"the loss is no longer finite at step {first_step + step}: {values}. Training stopped; what was saved "
            f"before is untouched. Try a lower learning rate, another weight for that term, or look at {look_at}."
        )


def _refuse_non_finite_weights(student: nn.Module, finite: Sequence[str], last_step: int) -> None:
    """A finite loss can have a gradient that is not; without a further step only the weights show it.

    Args:
        finite: the names of what was finite before.
    """
    now = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    state = {name: now[name].detach() for name in finite if name in now and now[name].is_floating_point()}
    if not state or nn.utils.get_total_norm(state.values()).isfinite():  # one look at all of them together
        return
    for name, weight in state.items():
        if not weight.isfinite().all():
            raise NonFiniteLossError(
                f"the loss was finite up to step {last_step}, but the student's {name} no longer is. Training stopped; "
                "what was saved before is untouched. Try a lower learning rate, or look at the losses' gradients."
            )
