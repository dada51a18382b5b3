"""Chapter 11: what a training step costs, what that says of a long run, and the widget for other machines."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import ipywidgets as widgets
import pandas as pd
import torch
from torch import Tensor, nn

from kdlab.classroom.panel import LABELLED, WIDE, Panel, slider
from kdlab.classroom.svg import line_chart
from kdlab.errors import InputError

MOST = 64  # processes in the widget
FLOAT32 = 4  # bytes


# --- measure a step --------------------------------------------------------------------------------------------------


def finish(device: torch.device) -> None:
    """Until the device has done all that it was asked for: a GPU works while the program goes on."""
    getattr(torch, device.type).synchronize()


def in_turns(runs: Mapping[str, Callable[[], object]], device: torch.device, repeats: int = 5) -> dict[str, float]:
    """Seconds of a call of each run: the median of so many, in the order A B A B ..., after one that does not count.

    What else the machine does then slows all of them alike.

    Raises:
        InputError: no repeats.
    """
    if repeats < 1:
        raise InputError(f"repeats is {repeats}; wanted: at least 1.")
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + repeats):
        for name, run in runs.items():
            finish(device)
            began = perf_counter()
            run()
            finish(device)
            taken[name].append(perf_counter() - began)
    return {name: median(seconds[1:]) for name, seconds in taken.items()}


def kept_for_backward(forward: Callable[[], object], module: nn.Module) -> int:
    """Bytes that autograd keeps of a forward pass until the backward pass, the module's weights and buffers left out.

    Args:
        forward: returns what the backward pass would begin with.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()  # one piece of memory, however many tensors look at it
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive = forward()  # while it lives nothing is freed, and no address is given out twice
    del alive
    return sum(size for place, size in kept.items() if place not in own)


# --- decide ----------------------------------------------------------------------------------------------------------


def break_even(start: float, before: float, after: float) -> float:
    """After how many steps it has paid to spend ``start`` seconds once, for ``after`` instead of ``before`` a step.

    A whole number, or infinity where a step becomes no shorter.
    """
    return math.ceil(start / (before - after)) if after < before else math.inf


def pieces_that_fit(batch_size: int, fixed: float, each: float, limit: float) -> int:
    """The fewest equal pieces of a batch whose size fits into the memory.

    Args:
        fixed: what is needed however small the piece is: weights, gradients, what the optimiser remembers.
        each: what an image of the piece needs, in the same unit.

    Raises:
        InputError: not even a single image fits.
    """
    for pieces in range(1, batch_size + 1):
        if batch_size % pieces == 0 and fixed + each * batch_size / pieces <= limit:
            return pieces
    raise InputError(f"one image needs {fixed + each:g}, and the limit is {limit:g}; wanted: room for one image.")


@dataclass(frozen=True)
class Step:
    """What one step of the optimiser costs.

    Args:
        compute: seconds of what several processes share: each computes its part of the batch.
        serial: seconds of what is not shared, however many there are.
        gradient_bytes: what the processes compare in each step.
    """

    compute: float
    serial: float = 0.0
    gradient_bytes: float = 0.0

    def communication(self, processes: int, link: float) -> float:
        """Seconds until all have the mean gradient, in a ring: each sends 2 (n - 1) / n of it.

        Args:
            link: bytes a second from each process to the next.
        """
        return 2 * (processes - 1) / processes * self.gradient_bytes / link

    def seconds(self, processes: int = 1, link: float = math.inf) -> float:
        """A step with so many processes, which first compute and then compare."""
        return self.serial + self.compute / processes + self.communication(processes, link)

    def speed_up(self, processes: int, link: float = math.inf) -> float:
        """How many times faster than with one process."""
        return self.seconds() / self.seconds(processes, link)


@dataclass(frozen=True)
class LongRun:
    """A training, in counts that are the same on every machine.

    Args:
        flops: of one image in one step: all networks, forward and backward.
        parameters: that learn.
    """

    steps: int
    batch_size: int
    flops: float
    parameters: int

    @property
    def work(self) -> float:
        """FLOPs of the whole run."""
        return self.steps * self.batch_size * self.flops

    def step(self, rate: float) -> Step:
        """A step where one process achieves so many FLOPs a second, and nothing but FLOPs takes time."""
        return Step(self.batch_size * self.flops / rate, gradient_bytes=FLOAT32 * self.parameters)


def hours_table(runs: Mapping[str, LongRun], rate: float, processes: int = 1, link: float = math.inf) -> pd.DataFrame:
    """A row a run: its work in PFLOP (10^15), hours of computing and of comparing gradients, both, and the speed-up.

    Args:
        rate: FLOPs a second that one process achieves.
        link: bytes a second.
    """
    rows = []
    for name, run in runs.items():
        step, hours = run.step(rate), run.steps / 3600
        computing, comparing = hours * step.compute / processes, hours * step.communication(processes, link)
        rows.append(
            {"run": name, "PFLOP": run.work / 1e15, "computing, h": computing, "comparing gradients, h": comparing,
             "together, h": computing + comparing, "speed-up": step.speed_up(processes, link)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def in_words(hours: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("years", 24 * 365), ("days", 24), ("hours", 1)):
        if hours >= 1.5 * size:
            return f"{hours / size:.1f} {unit}"
    return f"{60 * hours:.1f} minutes"


# --- other machines --------------------------------------------------------------------------------------------------


def hours_explorer(runs: Mapping[str, LongRun], rate: float) -> Panel:
    """Enter a machine: how many hours the runs take there, and how far from linear its processes are.

    The panel has the controls as ``panel.rate`` (TFLOP/s), ``panel.processes`` and ``panel.link`` (GB/s).

    Args:
        rate: to begin with, FLOPs a second.
    """
    tflops = _log_slider("Achieved TFLOP/s", rate / 1e12, -3, 3)
    processes = slider("Processes", 1, 1, MOST, 1)
    processes.readout_format = ".0f"
    link = _log_slider("Link, GB/s", 1.25, -2, 3)

    def draw() -> str:
        count, achieved, carried = int(processes.value), 1e12 * tflops.value, 1e9 * link.value
        table = hours_table(runs, achieved, count, carried)
        lines: dict[str, list[tuple[float, float]]] = {"linear": [(n, n) for n in _doubled()]}
        for name, run in runs.items():
            step = run.step(achieved)
            lines[name] = [(n, step.speed_up(n, carried)) for n in _doubled()]
        chart = line_chart(
            lines, alt=f"Speed-up of each run with 1 to {MOST} processes, beside the linear one.",
            xlimit=MOST, limits=(0, MOST), xlabel="processes", ylabel="speed-up",
        )  # fmt: skip
        said = "; ".join(
            f"{run} {in_words(hours)}" for run, hours in zip(table["run"], table["together, h"], strict=True)
        )
        words = f"{tflops.value:.3g} TFLOP/s, {count} process{'es' * (count > 1)}, {link.value:.3g} GB/s: {said}."
        cells = table.to_html(index=False, float_format=_three_digits, border=0, justify="right", col_space=90)
        return f'<div style="text-align: right">{cells}</div>{chart}<p>{words}</p>'

    panel = Panel([tflops, processes, link], draw, "hours")
    panel.rate, panel.processes, panel.link = tflops, processes, link
    return panel


def _log_slider(label: str, value: float, low: float, high: float) -> widgets.FloatLogSlider:
    """From 10 to the power of about ``low`` to 10 to the power of ``high``, in steps one of which ends at ``value``."""
    step, value = 0.05, min(max(value, 10.0**low), 10.0**high)
    low += (math.log10(value) - low) % step
    return widgets.FloatLogSlider(
        value=value, min=low, max=high, step=step, description=label, style=LABELLED, layout=WIDE, readout_format=".3g"
    )


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _doubled() -> list[int]:
    return [2**power for power in range(MOST.bit_length())]
