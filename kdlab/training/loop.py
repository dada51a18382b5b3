"""The one training loop."""

import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from kdlab.errors import InputError, NonFiniteLossError
from kdlab.files import load_tensors, save_tensors, write_whole
from kdlab.progress import progress
from kdlab.training.checkpoints import BEST, LAST, RESUME, ModelCard, save_model
from kdlab.training.device import to_device

Row = dict[str, float]
LOOK_EVERY = 10  # steps between two looks at the losses: each look makes the processor wait for the accelerator


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


def fit(
    objective: nn.Module,
    loader: DataLoader,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None = None,
    evaluate: Callable[[nn.Module], Row],
    monitor: str = "accuracy",
    patience: int | None = None,
    out: Path | None = None,
    card: ModelCard | None = None,
    resume: bool = False,
    seed: int = 0,
    precision: Literal["fp32", "bf16"] = "fp32",
    max_norm: float | None = None,
    freeze_from: int | None = None,
    after_epoch: Callable[[Row], bool] | None = None,
) -> Fit:
    """Train ``objective.student`` on ``objective(*batch)["total"]``, on the device that the objective is on.

    The random numbers of an epoch depend on the seed and the epoch alone, so that a run that was killed and resumed
    ends in the same bits as one that was left alone (on the CPU). The student ends with its last weights, as the
    optimiser left them; the best ones are in ``out``.

    Args:
        objective: a :class:`Distiller`, a :class:`Supervised`, or any module that returns named losses.
        loader: yields the objective's arguments. A batch sampler that has ``set_epoch`` is told each epoch, from 0.
        scheduler: stepped after every optimiser step; an epoch is ``len(loader)`` of its steps.
        evaluate: from the student to named metrics, once an epoch.
        monitor: the one metric that says which epoch is best: the highest; for "loss", the lowest. Among epochs of
            equal metric the one of lower validation loss is the better.
        patience: end after so many epochs without a better one; None never does.
        out: folder for ``best``, ``last`` (models with their ``card``), ``resume`` (everything else, too) and
            ``history.csv``. Without it nothing is saved.
        card: what to save with the model; wanted with ``out``.
        resume: go on from ``out`` where a run of the same recipe was interrupted; from the start if there is none.
        precision: "bf16" computes the forward pass under autocast.
        max_norm: scale a gradient down to this norm where it is larger; None leaves it as it is.
        freeze_from: the first epoch, counted from 0, in which the student trains in eval mode: BatchNorm computes with
            the statistics that it has and leaves them as they are. None never does.
        after_epoch: sees each epoch's row; returning True stops.

    Raises:
        InputError: impossible settings; a metric that ``evaluate`` does not give; a checkpoint of another recipe.
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
    if len(loader) == 0:
        raise InputError("the loader yields no batch: fewer samples than one batch, or none at all.")
    if out is not None and card is None:
        raise InputError("out was given without a card: a saved model needs one to be used again.")

    student: Any = objective.student
    device = next(objective.parameters()).device
    with _alone_in(out) if out is not None else nullcontext():
        rows: list[Row] = []
        if out is not None and (out / RESUME).exists():
            if not resume:
                raise InputError(f"{out} holds an earlier run. Resume it, delete the folder, or choose another one.")
            rows = _restore(out / RESUME, objective, optimizer, scheduler, _recipe(card))
            _check_monitor(rows[-1], monitor)
        ended: Literal["epochs", "patience", "stopped", ""] = _ended(rows, epochs, monitor, patience)
        start = len(rows)
        with progress(total=(epochs - start) * len(loader), desc="training", unit="step") as bar:
            while not ended:
                began = time.perf_counter()
                epoch = len(rows)
                seed_everything(seed + 1_000_003 * epoch, loader)
                tell = getattr(loader.batch_sampler, "set_epoch", None)
                if tell is not None:
                    tell(epoch)
                row: Row = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"]}
                objective.train()
                if freeze_from is not None and epoch >= freeze_from:
                    student.eval()
                row |= _epoch(objective, loader, optimizer, scheduler, device, precision, max_norm, epoch, epochs, bar)
                _refuse_non_finite_weights(student, last_step=(epoch + 1) * len(loader))
                validation = evaluate(student)
                row |= {f"val_{name}": value for name, value in validation.items()}
                _check_monitor(row, monitor)
                row["seconds"] = time.perf_counter() - began
                rows.append(row)
                bar.set_postfix_str(f"loss {row['total']:.3g}, {monitor} {validation[monitor]:.4g}")
                ended = _ended(rows, epochs, monitor, patience)
                if after_epoch is not None and after_epoch(row) and not ended:
                    ended = "stopped"
                if out is not None and card is not None:
                    _save(out, objective, optimizer, scheduler, rows, card, _best(rows, monitor) == epoch)
    history = pd.DataFrame(rows)
    return Fit(history, rows[_best(rows, monitor)], ended or "epochs")


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Make the folder, and wait for a process that trains into it already: a cached run is then found there, done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tqdm.write(f"Another process trains into {out}; waiting for its end.", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise InputError(f"{out} cannot be written to ({error.strerror}). Choose another folder.") from error
    try:
        for unfinished in out.glob("*.partial"):  # a run was killed while it wrote
            unfinished.unlink()
        yield
    finally:
        lock.release()


def seed_everything(seed: int, loader: DataLoader | None = None) -> None:
    """Seed Python, NumPy, torch and, where it has a generator of its own, the loader."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    for generator in {getattr(loader, "generator", None), getattr(getattr(loader, "sampler", None), "generator", None)}:
        if generator is not None:
            generator.manual_seed(seed)


def _epoch(
    objective: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None,
    device: torch.device,
    precision: str,
    max_norm: float | None,
    epoch: int,
    epochs: int,
    bar: tqdm,
) -> Row:
    """One pass over the loader; the mean of each loss over its steps."""
    set_epoch: Callable[[float, int], None] | None = getattr(objective, "set_epoch", None)  # a Distiller has schedules
    half = torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    names: list[str] = []
    recent: list[Tensor] = []
    seen: list[Tensor] = []
    for step, batch in enumerate(loader, start=1):
        if set_epoch is not None:
            set_epoch(epoch + (step - 1) / len(loader), epochs)
        with half:
            losses = objective(*to_device(batch, device))
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(objective.parameters(), max_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        names = list(losses)
        recent += [loss.detach() for loss in losses.values()]
        if step % LOOK_EVERY == 0 or step == len(loader):
            rows = torch.stack([loss.float() for loss in recent]).view(-1, len(names)).cpu()
            _refuse_non_finite(rows, names, first_step=epoch * len(loader) + step - len(rows) + 1)
            bar.update(len(rows))
            seen.append(rows)
            recent = []
    return dict(zip(names, torch.cat(seen).mean(dim=0).tolist(), strict=True))


def _refuse_non_finite(losses: Tensor, names: Sequence[str], first_step: int) -> None:
    bad = ~losses.isfinite()
    if bad[:, names.index("total")].any():  # a loss of weight 0 is only reported
        step = int(bad[:, names.index("total")].nonzero()[0])
        terms = [name for name, is_bad in zip(names, bad[step].tolist(), strict=True) if is_bad and name != "total"]
        values = ", ".join(f"{name} = {losses[step, names.index(name)].item()}" for name in terms or ["total"])
        raise NonFiniteLossError(
            f"the loss is no longer finite at step {first_step + step}: {values}. Training stopped; what was saved "
            "before is untouched. Try a lower learning rate, another weight for that term, or look at the data."
        )


def _refuse_non_finite_weights(student: nn.Module, last_step: int) -> None:
    """A finite loss can have a gradient that is not; without a further step only the weights show it."""
    state = {name: tensor for name, tensor in student.state_dict().items() if tensor.is_floating_point()}
    if nn.utils.get_total_norm(state.values()).isfinite():  # one look at all of them together
        return
    for name, weight in state.items():
        if not weight.isfinite().all():
            raise NonFiniteLossError(
                f"the loss was finite up to step {last_step}, but the student's {name} no longer is. Training stopped; "
                "what was saved before is untouched. Try a lower learning rate, or look at the losses' gradients."
            )


def _check_monitor(row: Row, monitor: str) -> None:
    metrics = [name.removeprefix("val_") for name in row if name.startswith("val_")]
    if monitor not in metrics:
        raise InputError(f"monitor is {monitor!r}, but evaluate gives {', '.join(metrics)}.")


def _rank(row: Row, monitor: str) -> tuple[float, float]:
    """Larger is better. A tie in the metric, frequent on a small validation split, goes to the lower loss."""
    loss = -row.get("val_loss", 0.0)
    return (loss if monitor == "loss" else row[f"val_{monitor}"], loss)


def _best(rows: Sequence[Row], monitor: str) -> int:
    return max(range(len(rows)), key=lambda index: _rank(rows[index], monitor))


def _ended(rows: Sequence[Row], epochs: int, monitor: str, patience: int | None) -> Literal["epochs", "patience", ""]:
    if len(rows) >= epochs:
        return "epochs"
    if rows and patience is not None and len(rows) - 1 - _best(rows, monitor) >= patience:
        return "patience"
    return ""


def _recipe(card: ModelCard | None) -> dict[str, Any]:
    """The settings, as they come back from JSON."""
    return json.loads(json.dumps(card.recipe)) if card else {}


def _save(
    out: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None,
    rows: Sequence[Row],
    card: ModelCard,
    is_best: bool,
) -> None:
    """All files of an epoch. ``resume`` comes last: a kill before it makes the epoch again, to the same bits."""
    metrics = {name.removeprefix("val_"): value for name, value in rows[-1].items() if name.startswith("val_")}
    card = replace(card, metrics=metrics | {"epoch": rows[-1]["epoch"]})
    for name in [BEST, LAST] if is_best else [LAST]:
        student: Any = objective.student
        save_model(out / name, student, card)
    write_whole(out / "history.csv", pd.DataFrame(rows).to_csv(index=False).encode())
    state = optimizer.state_dict()
    tensors = {f"objective.{name}": tensor for name, tensor in objective.state_dict().items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    meta = {
        "recipe": card.recipe,
        "rows": rows,
        "optimizer": {"state": plain, "param_groups": state["param_groups"]},
        "scheduler": scheduler.state_dict() if scheduler is not None else None,
    }
    save_tensors(out / RESUME, tensors, meta)


def _restore(
    path: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None,
    recipe: dict[str, Any],
) -> list[Row]:
    """Put everything back as it was after the last whole epoch, and return the rows up to there."""
    tensors, meta = load_tensors(path)
    if "recipe" not in meta:
        raise InputError(f"{path} is not a file to resume from, but another one of kdlab's. Train into another folder.")
    if meta["recipe"] != recipe:
        names = sorted({*meta["recipe"], *recipe})
        changed = [
            f"{name} was {meta['recipe'].get(name)!r}, now {recipe.get(name)!r}"
            for name in names
            if meta["recipe"].get(name) != recipe.get(name)
        ]
        raise InputError(
            f"{path} belongs to a run with other settings: {'; '.join(changed)}. "
            "Resume with the same settings, or train into another folder."
        )
    if (scheduler is None) != (meta["scheduler"] is None):
        had, has = ("without" if one is None else "with" for one in (meta["scheduler"], scheduler))
        raise InputError(f"{path} belongs to a run {had} a learning rate schedule, this one is {has}. Train it anew.")
    state: dict[int, dict[str, Any]] = {
        int(index): dict(entries) for index, entries in meta["optimizer"]["state"].items()
    }
    weights = {}
    for name, tensor in tensors.items():
        owner, _, rest = name.partition(".")
        if owner == "objective":
            weights[rest] = tensor
        else:
            index, _, entry = rest.partition(".")
            state.setdefault(int(index), {})[entry] = tensor
    try:
        objective.load_state_dict(weights)
        optimizer.load_state_dict({"state": state, "param_groups": meta["optimizer"]["param_groups"]})
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} does not fit this model or optimiser ({reason}). Train into another folder."
        ) from error
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # A fused optimiser walks through memory: its state must lie in the order of the weights.
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if scheduler is not None:
        scheduler.load_state_dict(meta["scheduler"])
    return meta["rows"]
