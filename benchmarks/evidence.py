"""Make a chapter's evidence table: every run of its comparison, then means, intervals and verdicts.

    python benchmarks/evidence.py response

Runs that are in the file of runs already are not made again, so that an interrupted table goes on where it was.
"""

import argparse
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from kdlab.data import load_digits
from kdlab.distill import TeacherCache
from kdlab.files import write_whole
from kdlab.progress import progress
from kdlab.recipes.response import LOGITS, FewLabels, digits_teacher, evaluate
from kdlab.training import pick_device

FOLDER = Path(__file__).parent / "evidence"
SEEDS = range(5)
METRICS = ["accuracy", "loss", "calibration_error"]


def response() -> Iterator[FewLabels]:
    """Chapter 01: three ways to use 50, 100 or 1,000 labels, then T and alpha swept at 50 labels."""
    base = FewLabels("kd", labels=50, seed=0)
    table = [replace(base, method=m, labels=n) for n in (50, 100, 1000) for m in ("alone", "kd", "kd_unlabelled")]
    sweeps = [replace(base, temperature=t) for t in (1.0, 2.0, 8.0, 20.0)]
    sweeps += [replace(base, alpha=a) for a in (0.0, 0.1, 0.3, 0.5, 0.9, 1.0)]
    for run in table + sweeps:
        for seed in SEEDS:
            yield replace(run, seed=seed)


def run_response() -> pd.DataFrame:
    """All runs of chapter 01, one a row: its settings and its metrics on the test split after the last step."""
    path = FOLDER / "response_runs.csv"
    done = pd.read_csv(path) if path.exists() else pd.DataFrame()
    rows = done.to_dict("records")
    settings = [{name: row[name] for name in asdict(next(response()))} for row in rows]
    device = pick_device()
    data = load_digits()
    teacher, _ = digits_teacher(data, device)
    cache = TeacherCache.build(teacher, [LOGITS], data.train)
    for run in progress([run for run in response() if asdict(run) not in settings], desc="runs"):
        student, _ = run.run(data, teacher, cache)
        rows.append(asdict(run) | evaluate(student, data.test))
        write_whole(path, pd.DataFrame(rows).to_csv(index=False).encode())
    print("teacher:", evaluate(teacher, data.test))
    return pd.DataFrame(rows)


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: mean accuracy, half of its 95% interval (Student's t over the seeds), and the verdict.

    The verdict is on the paired differences to "alone" with the same labels and seed: "beats" or "worse" where their
    95% interval leaves out 0, else "no difference".
    """
    alone = runs[runs.method == "alone"].set_index(["labels", "seed"]).accuracy
    rows = []
    for key, group in runs.groupby(["labels", "method", "temperature", "alpha"], sort=False):
        accuracy = group.sort_values("seed").accuracy.to_numpy()
        row = dict(zip(["labels", "method", "temperature", "alpha"], key, strict=True))
        row |= {"seeds": len(group), "accuracy": accuracy.mean(), "interval": half_interval(accuracy)}
        row |= {name: group[name].mean() for name in METRICS[1:]}
        if row["method"] != "alone":
            pairs = list(zip(group.labels, group.seed, strict=True))
            gain = group.accuracy.to_numpy() - alone.loc[pairs].to_numpy()
            row |= {"gain": gain.mean(), "gain_interval": half_interval(gain)}
            row["verdict"] = verdict(gain)
        rows.append(row)
    return pd.DataFrame(rows)


def half_interval(values: np.ndarray) -> float:
    """Half the width of the 95% confidence interval of the mean."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def verdict(gains: np.ndarray) -> str:
    """The word for paired gains: "beats", "no difference" or "worse"."""
    if abs(gains.mean()) <= half_interval(gains):
        return "no difference"
    return "beats" if gains.mean() > 0 else "worse"


def provenance(chapter: str) -> str:
    """Date, commit, machine and command, as comment lines of a CSV file."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    machine = f"{pick_device().type}, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return (
        f"# date: {date.today()}\n# commit: {commit.strip()}\n# machine: {machine}\n"
        f"# command: python benchmarks/evidence.py {chapter}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter", choices=["response"])
    chapter = parser.parse_args().chapter
    origin = provenance(chapter)  # before the runs: the code that is loaded now makes them
    table = summarise(run_response())
    write_whole(FOLDER / f"{chapter}.csv", (origin + table.to_csv(index=False)).encode())
    print(table.to_string(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
