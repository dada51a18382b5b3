"""Time variants of the same work side by side, and write what came out as markdown."""

import argparse
import ctypes
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from timeit import timeit

import nbformat
import numpy as np
import torch
from nbclient import NotebookClient
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from kdlab.files import write_whole
from kdlab.frames import with_room_for_frames

RESULTS = Path(__file__).parent / "RESULTS.md"
TUTORIALS = Path(__file__).parents[1] / "tutorials"

Run = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of a table, as it is printed. ``met`` is "yes", "no", or empty where there is no goal."""

    what: str
    ours: str = ""
    other: str = ""
    ratio: str = ""
    goal: str = ""
    met: str = ""


Parts = Mapping[str, tuple[Callable[[str, int], list[Row]], int]]


def seconds(run: Run, calls: int = 1) -> float:
    """How long a call takes, the mean over so many in a row, wherever Python's stack stands at the moment."""
    return with_room_for_frames(partial(timeit, run, number=calls))() / calls


def interleave(
    variants: Mapping[str, Callable[[], Run]], repeats: int, calls: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Seconds a call of each variant, in the order A B B A A B ..., after one round that does not count.

    What else the machine does then slows all variants alike, and so does what the one before leaves behind: memory
    that the system has to hand out again, page by page.

    Args:
        variants: by name, what prepares a run; only the run itself is timed.
        repeats: rounds that count.
        calls: of a variant's run in a row, for one so short that the clock would not see it; otherwise 1.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(1 + repeats):
        turns = list(variants.items())
        for name, prepare in reversed(turns) if number % 2 else turns:
            times[name].append(seconds(prepare(), (calls or {}).get(name, 1)))
    return {name: np.array(taken[1:]) for name, taken in times.items()}


def keep_freed_memory() -> None:
    """Have glibc keep, from here on, what this process frees.

    It would give large pieces back to the system and take them again, page by page. Whether it does hangs on where they
    happen to lie, and costs a step on large maps up to a tenth: now in one variant, now in the other.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # as malloc.h numbers them
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_max, 0)


def take_turns(runs: Mapping[str, Run], repeats: int, calls: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """:func:`interleave` for runs that need no preparation."""
    return interleave({name: partial(lambda run: run, run) for name, run in runs.items()}, repeats, calls)


def compare(what: str, ours: np.ndarray, other: np.ndarray, at_most: float | None = None) -> Row:
    """The ratio of the medians, beside the quartiles of the ratios of each round, against its goal if it has one."""
    ratio = np.median(ours) / np.median(other)
    low, high = np.percentile(ours / other, [25, 75])
    shown = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
    return Row(what, spread(ours), spread(other), shown, *_against(ratio, at_most))


def peak_bytes(run: Run, device: str) -> int:
    """The most bytes that PyTorch's allocator has handed out at one time during a second call, above those before."""
    run()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return max(accumulate(changes))


def memory_row(what: str, runs: Mapping[str, Run], device: str, at_most: float | None = None) -> Row:
    """:func:`peak_bytes` of the run "ours" beside the run "other", and their ratio against its goal if it has one."""
    ours, other = (peak_bytes(runs[who], device) for who in ("ours", "other"))
    shown = (f"{taken / 2**20:.4g} MiB" for taken in (ours, other))
    return Row(what, *shown, f"{ours / other:.3f}", *_against(ours / other, at_most))


def spread(times: np.ndarray) -> str:
    """The median and, in brackets, the quartiles."""
    low, middle, high = np.percentile(times, [25, 50, 75])
    unit, scale = ("s", 1) if middle >= 1 else ("ms", 1e3) if middle >= 1e-3 else ("µs", 1e6)
    return f"{middle * scale:.4g} {unit} ({low * scale:.4g} to {high * scale:.4g})"


def yes(met: bool) -> str:
    """The word for a goal that is met or not."""
    return "yes" if met else "no"


def table(rows: Sequence[Row]) -> str:
    """The rows as a markdown table."""
    names = [field.name for field in fields(Row)]
    lines = [names, ["---"] * len(names), *(astuple(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(packages: Sequence[str]) -> str:
    """Date, commit, machine, how busy it is, and versions, as a markdown list."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"  # Windows has none
    versions = [f"Python {platform.python_version()}", *(f"{package} {_version(package)}" for package in packages)]
    lines = [
        f"Date {date.today()}, commit {commit()}",
        f"{_processor()}, cores: {os.cpu_count()}, threads of PyTorch: {torch.get_num_threads()}; all on the CPU",
        f"Load of the machine in the minute before: {load}",
        f"{platform.system()} {platform.machine()}, {', '.join(versions)}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def commit() -> str:
    """The commit that is run, "-dirty" where a file has changed since other than the tables that are being written."""
    git = partial(subprocess.run, cwd=RESULTS.parent, capture_output=True, text=True, check=True)
    tables = [f":!{RESULTS.name}", ":!evidence"]
    changed = git(["git", "status", "--porcelain", "--untracked-files=no", ":/", *tables]).stdout
    return git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() + ("-dirty" if changed else "")


def write_section(name: str, text: str) -> None:
    """Put the text between the two markers of that name in RESULTS.md, or at its end where it has none."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    section = f"{start}\n{text}\n{end}"
    whole = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    whole, found = re.subn(f"{start}.*?{end}", lambda _: section, whole, flags=re.DOTALL)
    write_whole(RESULTS, (whole if found else f"{whole}\n{section}\n").encode())


def wait_for(tensor: Tensor) -> None:
    """Until it has been computed: a GPU works while the program goes on."""
    if tensor.is_cuda:
        torch.cuda.synchronize()


@torch.no_grad()
def forward(network: nn.Module, images: Tensor) -> None:
    """One pass, finished."""
    network(images)
    wait_for(images)


def time_chapters(names: Sequence[str], at_most: float) -> list[Row]:
    """Chapters executed in the fast profile, one after the other, with one cache that is empty at first.

    Args:
        at_most: seconds for all together.
    """
    rows, total = [], 0.0
    with TemporaryDirectory() as folder:
        for name in names:
            taken = seconds(partial(execute_notebook, name, folder))
            total += taken
            rows.append(Row(name, f"{taken:.1f} s"))
    if rows:
        rows.append(Row("together", f"{total:.1f} s", goal=f"less than {at_most:g} s", met=yes(total < at_most)))
    return rows


def execute_notebook(name: str, cache_folder: str) -> None:
    """Run a chapter in the fast profile, with what it trains kept in that folder."""
    notebook = nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(TUTORIALS)}})
    client.execute(env={**os.environ, "KDLAB_CACHE": cache_folder, "KDLAB_PROFILE": "fast"})


def command_line(
    doc: str | None,
    parts: Parts,
    packages: Sequence[str],
    section: str,
    *,
    devices: Sequence[str] = ("cpu", "cuda"),
    only_cuda: Sequence[str] = (),
) -> None:
    """Measure the parts that the command names, print their tables, and keep them where that is asked for.

    Args:
        parts: by name, what measures from a device and a number of repeats, and how many repeats there are by default.
        section: of RESULTS.md; on a GPU another one, so that neither replaces the other.
        devices: where it can be measured.
        only_cuda: the parts that are left out elsewhere, unless they are named.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, "all"], default="all", help="what to measure")
    parser.add_argument("--device", choices=devices, default="cpu", help="where (default: %(default)s)")
    parser.add_argument("--repeats", type=int, help="timed rounds of every part, instead of its own number")
    parser.add_argument("--write", action="store_true", help="keep the tables of all parts in benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    everything = [name for name in parts if name not in only_cuda or arguments.device == "cuda"]
    chosen = everything if "all" in arguments.parts else arguments.parts
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error(f"--repeats is {arguments.repeats}; wanted: at least 1")
    if arguments.write and set(chosen) != set(everything):
        parser.error("--write replaces the whole section, so it wants all parts: name none")
    os.environ["TQDM_DISABLE"] = "1"
    blocks = [machine(packages)]
    if arguments.device == "cuda":
        blocks[0] = blocks[0].replace("all on the CPU", f"all on {torch.cuda.get_device_name()}")
        section = f"{section}-cuda"
    print(blocks[0], flush=True)
    for name in chosen:
        measure, repeats = parts[name]
        torch.manual_seed(0)
        rows = measure(arguments.device, arguments.repeats or repeats)
        blocks.append(f"### {name}\n\n{measure.__doc__}\n\n{table(rows)}")
        print(f"\n{blocks[-1]}", flush=True)
    if arguments.write:
        write_section(section, "\n\n".join(blocks))


def _against(ratio: float, at_most: float | None) -> tuple[str, str]:
    """A row's goal, and whether it is met."""
    return ("", "") if at_most is None else (f"at most {at_most:g}", yes(ratio <= at_most))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # on Linux platform.processor() is empty or only "x86_64"
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
