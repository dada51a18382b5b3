"""The folder of a run: what is saved after each epoch, and how a run that was interrupted goes on from there."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from kdlab.errors import InputError, first_line
from kdlab.files import load_tensors, save_tensors, write_whole
from kdlab.training.checkpoints import BEST, LAST, RESUME, ModelCard, load_model, save_model

HISTORY = "history.csv"
LENGTHS = ("T_max", "T_0", "total_steps", "total_iters", "step_size", "milestones", "_milestones")  # of a schedule
FREE = ("patience",)  # of a recipe, what may change when a run is gone on with: no epoch so far depends on it
Row = dict[str, float]  # of an epoch: what was measured, by name
Saved = tuple[dict[str, Tensor], dict[str, Any]]


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Make the folder, and wait for a process that trains into it already: a cached run is then found there, done.

    What a killed run has left half written is deleted.

    Raises:
        InputError: the folder cannot be made or written to.
    """
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
        for name in (BEST, LAST, RESUME, HISTORY):
            for unfinished in out.glob(f"{name}.*.partial"):  # a run was killed while it wrote
                unfinished.unlink()
        yield
    finally:
        lock.release()


def save(
    out: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None,
    rows: Sequence[Row],
    card: ModelCard,
    is_best: bool,
) -> None:
    """All files of an epoch. The history comes first, so that a model in the folder is seen to be of this run.

    ``resume`` comes last: a kill before it makes the epoch again, to the same bits.

    Raises:
        InputError: an optimiser has made something else than tensors and numbers in the meantime; no file is written.
    """
    state = optimizer.state_dict()
    tensors = {f"objective.{name}": tensor for name, tensor in objective.state_dict().items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    _check_plain(f"what {type(optimizer).__name__} remembers of its steps", plain)
    metrics = {name.removeprefix("val_"): value for name, value in rows[-1].items() if name.startswith("val_")}
    card = replace(card, metrics=metrics | {"epoch": rows[-1]["epoch"]})
    write_whole(out / HISTORY, pd.DataFrame(rows).to_csv(index=False).encode())
    for name in [BEST, LAST] if is_best else [LAST]:
        student: Any = objective.student
        save_model(out / name, student, card)
    meta = {
        "recipe": card.recipe,
        "rows": rows,
        "optimizer": {"state": plain, "param_groups": state["param_groups"]},
        "scheduler": scheduler.state_dict() if scheduler is not None else None,
    }
    save_tensors(out / RESUME, tensors, meta)


def check_savable(
    card: ModelCard, objective: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler | None
) -> None:
    """Refuse, before an epoch is trained, what could not be written after it.

    Raises:
        InputError: something else than tensors in the objective's ``state_dict``; elsewhere, something else than
            numbers, texts, lists and dictionaries of them.
    """
    for name, value in objective.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"the objective's {name} cannot be saved: in its state_dict it is a {type(value).__name__}; wanted: "
                "tensors alone. Keep numbers in a buffer, and leave get_extra_state out."
            )
    _check_plain("the card", asdict(card))
    _check_plain("the optimiser", optimizer.state_dict()["param_groups"])
    if scheduler is not None:
        _check_plain("the scheduler", scheduler.state_dict())


def _check_plain(what: str, part: Any) -> None:
    try:
        json.dumps(part)
    except TypeError as error:
        raise InputError(
            f"{what} cannot be saved: {first_line(error)}. Wanted there: texts, Python's own numbers, lists and "
            "dictionaries of them: str(path), int(number), a learning rate that is no tensor."
        ) from error


def load_saved(out: Path, resume: bool) -> Saved | None:
    """What an earlier run has left in the folder to be gone on with.

    Raises:
        InputError: there is an earlier run, and it is not to be resumed; its file is damaged.
    """
    if not (out / RESUME).exists():
        return None
    if not resume:
        raise InputError(f"{out} holds an earlier run. Resume it, delete the folder, or choose another one.")
    return load_tensors(out / RESUME)


def earlier_start(out: Path | None, resume: bool) -> str | None:
    """What a run that goes on had started from, in words: it has no use for another start. None: it is a new one."""
    return load_model(out / LAST)[1].weights if resume and out is not None and (out / RESUME).exists() else None


def check_recipe(out: Path, recipe: dict[str, Any]) -> None:
    """Refuse a folder with a run of another recipe, patience aside: before the work that comes before the first step.

    Raises:
        InputError: with the settings that differ; also a damaged file.
    """
    if (out / RESUME).exists():
        _check_recipe(out / RESUME, load_tensors(out / RESUME)[1], recipe)


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """As :func:`check_recipe`, by these settings alone: where the rest of the recipe is not yet known."""
    if (out / RESUME).exists():
        meta = load_tensors(out / RESUME)[1]
        _check_recipe(out / RESUME, meta, {**meta.get("recipe", {}), **settings})


def restore(
    path: Path,
    saved: Saved,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None,
    card: ModelCard,
) -> list[Row]:
    """Put everything back as it was after the last whole epoch, and return the rows up to there.

    Raises:
        InputError: what was saved is of another recipe, model or optimiser, or of no run.
    """
    tensors, meta = saved
    _check_recipe(path, meta, card.recipe)
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
        raise InputError(
            f"{path} does not fit this model or optimiser ({first_line(error)}). Train into another folder."
        ) from error
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape:
                # A fused optimiser walks through memory: its state must lie in the order of the weights.
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if scheduler is not None:
        _check_lengths(path, meta["scheduler"], scheduler.state_dict())
        scheduler.load_state_dict(_before_json(meta["scheduler"], scheduler.state_dict()))
    return meta["rows"]


def _check_lengths(path: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """The schedule comes back as it was: a longer one would not be followed, and the rate would climb again."""
    now = json.loads(json.dumps({name: now[name] for name in LENGTHS if name in now}))
    changed = [f"{name} was {was[name]}, now {now[name]}" for name in now if name in was and was[name] != now[name]]
    if changed:
        raise InputError(
            f"{path} belongs to a run with another learning rate schedule: {'; '.join(changed)}. "
            "Resume with the same one, or train into another folder."
        )


def _before_json(value: Any, like: Any) -> Any:
    """What came back from JSON, which has no tuples and only text for keys, with the types that its ``like`` has.

    MultiStepLR counts its milestones by number: under the key "30" it would never find the step 30 again.
    """
    match like:
        case Counter():  # of steps
            return Counter({int(key): count for key, count in value.items()})
        case dict():
            keys = {str(key): key for key in like}
            return {keys.get(key, key): _before_json(one, like.get(keys.get(key))) for key, one in value.items()}
        case list() | tuple() if len(value) == len(like):
            return type(like)(_before_json(*both) for both in zip(value, like, strict=True))
    return value


def _check_recipe(path: Path, meta: dict[str, Any], recipe: dict[str, Any]) -> None:
    if "recipe" not in meta:
        raise InputError(f"{path} is not a file to resume from, but another one of kdlab's. Train into another folder.")
    recipe = json.loads(json.dumps(recipe))  # as it comes back from the file
    was, now = (
        {name: repr(one[name]) if name in one else "not recorded" for name in {*meta["recipe"], *recipe}}
        for one in (meta["recipe"], recipe)
    )
    changed = [
        f"{name} was {was[name]}, now {now[name]}" for name in sorted({*was} - {*FREE}) if was[name] != now[name]
    ]
    if changed:
        raise InputError(
            f"{path} belongs to a run with other settings: {'; '.join(changed)}. "
            "Resume with the same settings, or train into another folder."
        )
