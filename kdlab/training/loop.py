"""The one training loop."""

import inspect
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from kdlab import processes
from kdlab.errors import InputError
from kdlab.frames import with_room_for_frames
from kdlab.modes import evaluating
from kdlab.progress import progress
from kdlab.training.batches import Pieces, check_draws_all, in_pieces, samplers_of
from kdlab.training.checkpoints import RESUME, ModelCard
from kdlab.training.epoch import Epoch
from kdlab.training.run_folder import Row, alone_in, check_savable, load_saved, restore, save


@dataclass(frozen=True)
class Fit:
    """What a training came to.

    Args:
        history: a row an epoch: mean losses over the steps, what ``evaluate`` gave, learning rate, seconds.
        best: the row of the best epoch.
        ended: "epochs" (all done), "patience" (no better for too long) or "stopped" (by ``after_epoch``).
    """

    history: pd.DataFrame
    best: Row
    ended: Literal["epochs", "patience", "stopped"]


@with_room_for_frames
def fit(
    objective: nn.Module,
    loader: DataLoader,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, Any]],
    monitor: str = "accuracy",
    patience: int | None = None,
    patience_from: int = 0,
    out: Path | str | None = None,
    card: ModelCard | None = None,
    resume: bool = False,
    seed: int = 0,
    precision: Literal["fp32", "bf16"] = "fp32",
    max_norm: float | None = None,
    freeze_from: int | None = None,
    accumulate: int = 1,
    channels_last: bool = False,
    compile: bool = False,
    after_epoch: Callable[[Row], bool] | None = None,
) -> Fit:
    """Train ``objective.student`` on ``objective(*batch)["total"]``, on the device that the objective is on.

    The random numbers of an epoch depend on the seed and the epoch alone, so that a run that was killed and resumed
    ends in the same bits as one that was left alone (on the CPU; not where loading processes that draw random numbers
    live on from epoch to epoch, ``persistent_workers``). The student ends with its last weights, as the optimiser left
    them; the best ones are in ``out``.

    Where torchrun has started several processes (:mod:`kdlab.processes`), each computes its part of every
    batch, and all take the same steps as one would with whole batches: exactly so where the objective is a mean over
    samples, all of which count (not only those with a label), and there is neither BatchNorm nor augmentation, of which
    each process has statistics and random numbers of its own. The first one saves and shows; a run may be resumed by
    another number of them.

    Args:
        objective: a :class:`kdlab.distill.Distiller`, a :class:`Supervised`, or any module that returns named losses.
        loader: yields the objective's arguments, a batch for each of the optimiser's steps, the same in all processes.
            A batch sampler that has ``set_epoch`` is told each epoch, from 0.
        optimizer: of the objective's parameters, ``AdamW(distiller.parameters())``: those of the student alone would
            leave connectors and learnable losses as they are.
        scheduler: stepped after every optimiser step; an epoch is ``len(loader)`` of its steps, so that one for 30
            epochs is ``StepLR(optimizer, 30 * len(loader))``.
        evaluate: from the student, in eval mode and without gradients, to named metrics, each a number; once an epoch.
        monitor: the one metric that says which epoch is best: the highest; for "loss", the lowest. Among epochs of
            equal metric the one of lower validation loss is the better. NaN is worse than any number.
        patience: end after so many epochs without a better one; None never does.
        patience_from: the first epoch, counted from 0, that is counted for it.
        out: folder for ``best``, ``last`` (models with their ``card``), ``resume`` (everything else, too) and
            ``history.csv``. Without it nothing is saved.
        card: what to save with the model; wanted with ``out``.
        resume: go on from ``out`` where a run of the same recipe was interrupted; from the start if there is none. The
            recipe is ``card.recipe``: what is not in it is not compared, and the optimiser is what it was. ``patience``
            may be another one: a run that has run out of it goes on with more. The schedule may not.
        precision: "bf16" computes the forward pass under autocast.
        max_norm: scale a gradient down to this norm where it is larger; None leaves it as it is.
        freeze_from: the first epoch, counted from 0, in which the student trains in eval mode: BatchNorm computes with
            the statistics that it has and leaves them as they are. None never does.
        accumulate: compute a batch in so many pieces, one after the other, and add up their gradients: less memory for
            the same step, as with several processes.
        channels_last: lay the weights of the objective's 2D convolutions, a teacher's too, in memory channel by channel
            at each place, where they stay; False leaves them as they are. Mostly faster, on a CPU too.
        compile: the student, with ``torch.compile``, for training; it is evaluated as it is. Not while shapes are
            checked (:func:`kdlab.check_shapes`), which cannot be compiled.
        after_epoch: sees each epoch's row; returning True stops.

    Raises:
        InputError: impossible settings; an objective without a student or a total, or with parameters that the
            optimiser lacks; a student that is frozen, or not the optimiser's; losses that are no scalars, or called as
            other columns of a history; an optimiser that wants a closure; a scheduler that wants a metric, or of
            another optimiser; a loader without a length, of other batches than the objective takes, or with a
            DistributedSampler; a metric that ``evaluate`` does not give, or that has no name or is no number; what
            cannot be saved; a checkpoint of another recipe; a batch that cannot be divided equally; no compiler.
        NonFiniteLossError: a loss became NaN or infinite.
    """
    if epochs < 1 or (patience is not None and patience < 1):
        raise InputError(f"epochs is {epochs} and patience {patience}; both must be at least 1 (patience may be None).")
    if precision not in ("fp32", "bf16"):
        raise InputError(f"precision is {precision!r}; wanted: 'fp32' or 'bf16'.")
    if max_norm is not None and not max_norm > 0:
        raise InputError(f"max_norm is {max_norm}; wanted: above 0, such as 0.5, or None.")
    if freeze_from is not None and freeze_from < 0:
        raise InputError(f"freeze_from is {freeze_from}; wanted: an epoch, counted from 0, or None.")
    if accumulate < 1:
        raise InputError(f"accumulate is {accumulate}; wanted: pieces of a batch, at least 1.")
    student = _student(objective)
    _check_all_learn(objective, student, optimizer)
    _check_steps(optimizer, scheduler)
    if _length(loader) == 0:
        raise InputError("the loader yields no batch: fewer samples than one batch, or none at all.")
    check_draws_all(loader)
    if out is not None and card is None:
        raise InputError("out was given without a card: a saved model needs one to be used again.")
    if out is not None and card is not None:
        check_savable(card, objective, optimizer, scheduler)

    if channels_last:
        objective._apply(lambda one: one.contiguous(memory_format=torch.channels_last) if one.ndim == 4 else one)
    out = Path(out) if out is not None else None
    divided = accumulate > 1 or processes.count() > 1
    pieces = in_pieces(loader, accumulate) if divided else loader
    with ExitStack() as stack:
        if out is not None and processes.is_first():
            stack.enter_context(alone_in(out))
        rows: list[Row] = []
        saved = processes.from_first(lambda: load_saved(out, resume)) if out is not None else None
        if out is not None and card is not None and saved is not None:
            rows = restore(out / RESUME, saved, objective, optimizer, scheduler, card)
            _check_monitor(rows[-1], monitor)
        ended: Literal["epochs", "patience", "stopped", ""] = _ended(rows, epochs, monitor, patience, patience_from)
        start = len(rows)
        if compile:
            stack.enter_context(_compiled(student))
        parallel = processes.in_parallel(objective)
        steps = Epoch(objective, parallel, pieces, optimizer, scheduler, precision, max_norm, accumulate)
        with progress(total=(epochs - start) * len(loader), desc="training", unit="step") as bar:
            while not ended:
                began = time.perf_counter()
                epoch = len(rows)
                seed_everything(seed + 1_000_003 * epoch, loader)
                tell = getattr(loader.batch_sampler, "set_epoch", None)
                if tell is not None:
                    tell(epoch)
                if isinstance(pieces.batch_sampler, Pieces):
                    pieces.batch_sampler.draw(loader.generator)
                if not processes.is_first():  # the same batches, but other crops of them, and other units dropped
                    seed_everything(seed + 1_000_003 * epoch + 1_009 * processes.own_place(), loader)
                row: Row = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"]}
                objective.train()
                if freeze_from is not None and epoch >= freeze_from:
                    getattr(objective, "students", student).eval()  # a MutualDistiller has several
                row |= steps.run(epoch, epochs, bar)
                processes.average_buffers(objective)
                eager = torch.compiler.set_stance("force_eager") if compile else nullcontext()
                with eager, evaluating(student), torch.no_grad():
                    metrics = _named_numbers(evaluate(student))
                row |= {f"val_{name}": value for name, value in metrics.items()}
                _check_monitor(row, monitor)
                row["seconds"] = time.perf_counter() - began
                rows.append(row)
                bar.set_description(f"training, {monitor} {row[f'val_{monitor}']:.4g}")
                ended = _ended(rows, epochs, monitor, patience, patience_from)
                if after_epoch is not None and after_epoch(row) and not ended:
                    ended = "stopped"
                if out is not None and card is not None and processes.is_first():
                    save(out, objective, optimizer, scheduler, rows, card, _best(rows, monitor) == epoch)
    processes.wait_for_all()  # whoever reads the files next finds the last epoch's
    history = pd.DataFrame(rows)
    return Fit(history, rows[_best(rows, monitor)], ended or "epochs")


def _student(objective: nn.Module) -> Any:
    student = getattr(objective, "student", None)
    if not isinstance(student, nn.Module):
        raise InputError(
            f"the objective is {type(objective).__name__}, which has no network as its `student`; wanted: a Distiller, "
            "or Supervised(network, loss) for a network alone."
        )
    return student


def _check_all_learn(objective: nn.Module, student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A part of the student may stay as it is; a connector that does would bend what the student learns, unseen."""
    moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own = dict(student.named_parameters())
    if own and not any(one.requires_grad for one in own.values()):
        raise InputError(
            "every weight of the student is frozen; wanted: one to learn, at least. What has been a Distiller's "
            "teacher stays frozen, and so does a copy of it: student.requires_grad_(True)."
        )
    if own and not any(id(one) in moved for one in own.values()):
        raise InputError(
            f"the optimiser has none of the student's {len(own)} parameters; wanted: it moves them. Make it of "
            "objective.parameters(), after the student was copied or replaced."
        )
    moved |= {id(parameter) for parameter in student.parameters()}
    left = [name for name, one in objective.named_parameters() if one.requires_grad and id(one) not in moved]
    if left:
        raise InputError(
            f"the optimiser lacks {len(left)} of the objective's parameters ({', '.join(left[:2])}); wanted: "
            "all that are not the student's. Give it distiller.parameters(), or freeze them with requires_grad_(False)."
        )


def _check_steps(optimizer: torch.optim.Optimizer, scheduler: LRScheduler | None) -> None:
    """Both are stepped without an argument."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise InputError(
            f"the optimiser is {type(optimizer).__name__}, which computes the loss several times in a step, by a "
            "closure; wanted: one that steps from the gradient alone, such as SGD or AdamW."
        )
    if isinstance(scheduler, ReduceLROnPlateau):
        raise InputError(
            "the scheduler is ReduceLROnPlateau, which waits for a metric, and is stepped after every optimiser step, "
            "where there is none; wanted: one that goes by the steps, such as OneCycleLR or MultiStepLR."
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise InputError(
            "the scheduler is of another optimiser, so that the learning rate of this one would stay as it is. Make it "
            "of the optimiser that is given."
        )


def _length(loader: DataLoader) -> int:
    try:
        return len(loader)
    except TypeError as error:
        raise InputError(
            f"the loader has no length, nor has its {type(loader.dataset).__name__}; wanted: one that says how many "
            "batches an epoch has. Give the data set a __len__."
        ) from error


@contextmanager
def _compiled(student: Any) -> Iterator[None]:
    """The student is compiled in here, and what it was outside."""
    torch.compiler.reset()  # PyTorch sees no hooks: it would take what was compiled without those that read layers
    student.compile()
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).strip().split("\n\n")[0].split())
        raise InputError(f"the student cannot be compiled here ({reason}). Train without compile.") from error
    finally:
        student._compiled_call_impl = None


def seed_everything(seed: int, loader: DataLoader | None = None) -> None:
    """Seed Python, NumPy, torch and, where they have generators of their own, the loader and its samplers."""
    seed %= 2**64  # of the largest seeds the later epochs' would be more than torch takes
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    for draws in (loader, *samplers_of(loader)):
        generator = getattr(draws, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)


def _named_numbers(metrics: Any) -> dict[str, float]:
    if not isinstance(metrics, Mapping):
        raise InputError(
            f"evaluate gives a {type(metrics).__name__}; wanted: each metric by its name, such as "
            "{'accuracy': 0.9}, also where there is only one."
        )
    return {name: _number(name, value) for name, value in metrics.items()}


def _number(metric: str, value: Any) -> float:
    """A tensor or a NumPy number, too, as one that ranks, prints and goes into JSON."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"{type(value).__name__} {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise InputError(
            f"evaluate gives {metric!r} as {what}; wanted: a number. Take its mean, or give each value a name."
        ) from error


def _check_monitor(row: Row, monitor: str) -> None:
    metrics = [name.removeprefix("val_") for name in row if name.startswith("val_")]
    if monitor not in metrics:
        raise InputError(f"monitor is {monitor!r}, but evaluate gives {', '.join(metrics)}.")


def _rank(row: Row, monitor: str) -> tuple[float, float]:
    """Larger is better. A tie in the metric, frequent on a small validation split, goes to the lower loss."""
    loss = _nan_last(-row.get("val_loss", 0.0))
    return (loss if monitor == "loss" else _nan_last(row[f"val_{monitor}"]), loss)


def _nan_last(value: float) -> float:
    """NaN compares as neither more nor less: as the best so far it would never be replaced."""
    return -math.inf if math.isnan(value) else value


def _best(rows: Sequence[Row], monitor: str) -> int:
    return max(range(len(rows)), key=lambda index: _rank(rows[index], monitor))


def _ended(
    rows: Sequence[Row], epochs: int, monitor: str, patience: int | None, patience_from: int
) -> Literal["epochs", "patience", ""]:
    if len(rows) >= epochs:
        return "epochs"
    if rows and patience is not None and len(rows) - max(_best(rows, monitor) + 1, patience_from) >= patience:
        return "patience"
    return ""
