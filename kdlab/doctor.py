"""Look at everything that kdlab needs from a machine, and say how to mend what is wrong."""

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from kdlab.errors import GET_YOLO
from kdlab.paths import cache_dir

REINSTALL = "run `make setup` in kdlab's folder, or there: python -m pip install -c constraints.txt -e '.[lab]'"
ROOM = 10**9  # bytes: the course's checkpoints and cached teacher outputs, with something to spare
BROWSERS = (  # such as the browser tests can drive
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "msedge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what it is, whether it will do, what was found and how to mend it.

    What is not ``required`` does not make a machine unfit for the course.
    """

    name: str
    ok: bool
    found: str
    mend: str = ""
    required: bool = True


def examine() -> list[Finding]:
    """Look at Python, packages, PyTorch, device, cache folder, built-in data, widgets, JupyterLab, YOLO and browser."""
    return [
        _python(),
        _packages(),
        _test_packages(),
        _pytorch(),
        _device(),
        _cache(),
        _data(),
        _widgets(),
        _jupyterlab(),
        _yolo(),
        _browser(),
    ]


def report() -> int:
    """Print the findings as a table, with the mending below whatever is wrong.

    Returns:
        The exit status: 0, or 1 if anything required is wrong.
    """
    findings = examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "ok   " if finding.ok else "WRONG" if finding.required else "note "
        print(f"{mark}  {finding.name:{width}}  {finding.found}")
        if not finding.ok:
            print(f"{'':{width + 9}}-> {finding.mend}")
    wrong = sum(finding.required and not finding.ok for finding in findings)
    print(f"\n{wrong} to mend." if wrong else "\nReady.")
    return int(wrong > 0)


def _python() -> Finding:
    wanted = metadata.metadata("kdlab")["Requires-Python"]
    found = platform.python_version()
    return Finding(
        "Python",
        SpecifierSet(wanted).contains(found, prereleases=True),
        found,
        f"kdlab needs Python {wanted}: delete .venv, then `make setup PYTHON=...` with a newer Python",
    )


def _packages() -> Finding:
    required = _requirements() + _requirements("lab")
    faults = _faults(required)
    return Finding("Packages", not faults, "; ".join(faults) or f"all {len(required)} within kdlab's ranges", REINSTALL)


def _test_packages() -> Finding:
    faults = _faults(_requirements("test"))
    found = "; ".join(faults) or "all there"
    return Finding("Test packages", not faults, found, "`make test` installs them", required=False)


def _requirements(extra: str = "") -> list[Requirement]:
    """What kdlab's metadata asks for on this machine: always, or for this extra alone."""
    every = [Requirement(line) for line in metadata.requires("kdlab") or []]

    def asked(requirement: Requirement, extra: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": extra})

    return [one for one in every if asked(one, extra) and (not extra or not asked(one, ""))]


def _faults(requirements: list[Requirement]) -> list[str]:
    faults = []
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            faults.append(f"{requirement.name} is missing (wanted {requirement.specifier})")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} is {version} (wanted {requirement.specifier})")
    return faults


def _pytorch() -> Finding:
    mend = "torch and torchvision must come from one release: " + REINSTALL
    try:
        import torch
        import torchvision

        # A torchvision built for another torch imports, or not, but never brings its compiled operators.
        torch.ops.torchvision.nms  # noqa: B018
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Finding("PyTorch", False, f"torch and torchvision do not load together: {error}", mend)
    return Finding("PyTorch", True, f"torch {torch.__version__} with torchvision {torchvision.__version__}", mend)


def _device() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("Device", False, f"unknown, PyTorch does not load: {error}", REINSTALL)
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return Finding("Device", True, f"CUDA: {gpu.name}, {_size(gpu.total_memory)}, {_bfloat16('cuda')}")
    if torch.backends.mps.is_available():
        memory = _size(torch.mps.recommended_max_memory())
        return Finding("Device", True, f"MPS: {platform.machine()}, {memory}, {_bfloat16('mps')}")
    found = f"CPU: {torch.get_num_threads()} threads, {_memory()}, {_bfloat16('cpu')}"
    if shutil.which("nvidia-smi"):
        mend = "PyTorch cannot use the NVIDIA GPU that seems to be here: update its driver"
        return Finding("Device", False, found, mend, required=False)
    return Finding("Device", True, found)


def _bfloat16(device: str) -> str:
    import torch

    try:
        one = torch.ones(8, 8, device=device, dtype=torch.bfloat16)
        return "bf16" if (one @ one).sum().item() == 512 else "no bf16"
    except (RuntimeError, TypeError):
        return "no bf16"


def _memory() -> str:
    try:
        return _size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError):  # Windows has no sysconf
        return "memory unknown"


def _cache() -> Finding:
    folder = cache_dir()
    mend = "name a folder that you may write to, with 1 GB free, in the environment variable KDLAB_CACHE"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:  # root passes every question about rights, but not this one
            file.write(b"kdlab")
        free = shutil.disk_usage(folder).free
        used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except OSError as error:
        return Finding("Cache", False, f"{folder} cannot be written: {error.strerror}", mend)
    shown = f"~/{folder.relative_to(Path.home())}" if folder.is_relative_to(Path.home()) else folder
    return Finding("Cache", free >= ROOM, f"{shown}: {_size(used)} used, {_size(free)} free", mend)


def _data() -> Finding:
    try:
        from sklearn.datasets import load_digits

        images = load_digits().images
    except (ImportError, OSError, ValueError) as error:
        return Finding("Data", False, f"the built-in digits do not load: {error}", REINSTALL)
    return Finding("Data", len(images) == 1797, f"{len(images)} built-in digits", REINSTALL)


def _widgets() -> Finding:
    try:
        version = metadata.version("ipywidgets")
        parts = [Requirement(line) for line in metadata.requires("ipywidgets") or []]
        from jupyter_core.paths import jupyter_path
    except (metadata.PackageNotFoundError, ImportError) as error:
        return Finding("Widgets", False, f"missing: {error}", REINSTALL)
    faults = _faults([part for part in parts if part.name in ("jupyterlab_widgets", "widgetsnbextension")])
    manifest = Path("@jupyter-widgets", "jupyterlab-manager", "package.json")
    if not any((Path(folder) / manifest).is_file() for folder in jupyter_path("labextensions")):
        faults.append("JupyterLab's widget extension is missing")
    return Finding("Widgets", not faults, "; ".join([f"ipywidgets {version}", *faults]), REINSTALL)


def _jupyterlab() -> Finding:
    try:
        version = metadata.version("jupyterlab")
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

        KernelSpecManager().get_kernel_spec("python3")
    except metadata.PackageNotFoundError:
        return Finding("JupyterLab", False, "missing", REINSTALL)
    except (ImportError, NoSuchKernel) as error:
        return Finding("JupyterLab", False, f"the notebooks' kernel is missing: {error}", REINSTALL)
    return Finding("JupyterLab", True, version)


def _yolo() -> Finding:
    required = _requirements("yolo")
    faults = _faults(required)
    found = "; ".join(faults) or ", ".join(f"{one.name} {metadata.version(one.name)}" for one in required)
    mend = f"only chapter 06 and `kdlab yolo` need it; {GET_YOLO}; ultralytics is under the AGPL-3.0"
    return Finding("YOLO", not faults, found, mend, required=False)


def find_browser() -> str | None:
    """The first of :data:`BROWSERS` that is on this machine, as a path."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def _browser() -> Finding:
    browser = find_browser()
    mend = "only the browser tests need one: install Chromium, Chrome or Edge"
    found = Path(browser).name if browser else "none found"
    return Finding("Browser", browser is not None, found, mend, required=False)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
