"""The doctor: a healthy machine passes, and each fault is found, named, and comes with its mending."""

import platform
import shutil
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from kdlab import doctor
from kdlab.errors import GET_YOLO


@pytest.fixture(autouse=True)
def healthy(tmp_path, monkeypatch):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))


def version_of(package, version):
    """A stand-in for importlib's metadata.version in which one package has another version, or (None) is missing."""
    true = metadata.version

    def lookup(name):
        if name != package:
            return true(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    return lookup


def fails_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def the(name):
    return next(finding for finding in doctor.examine() if finding.name == name)


def test_a_healthy_machine_is_ready(capsys):
    assert doctor.report() == 0
    printed = capsys.readouterr().out
    assert "WRONG" not in printed
    assert printed.endswith("Ready.\n")
    assert torch.__version__ in printed


def test_the_cache_folder_is_made_and_left_empty(tmp_path):
    finding = the("Cache")
    assert finding.ok
    assert str(tmp_path / "cache") in finding.found
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_size_of_the_cache_is_told(tmp_path):
    (tmp_path / "cache" / "deep").mkdir(parents=True)
    with (tmp_path / "cache" / "deep" / "weights").open("wb") as file:
        file.truncate(200_000_000)
    assert "0.2 GB used" in the("Cache").found


def python_too_old(monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.13")


def package_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(metadata, "version", version_of("safetensors", None))


def package_too_old(monkeypatch, tmp_path):
    monkeypatch.setattr(metadata, "version", version_of("torch", "1.13.1"))


def torchvision_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)


def torchvision_of_another_torch(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.ops, "torchvision", SimpleNamespace())


def file_in_place_of_the_cache(monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("in the way")


def file_above_the_cache(monkeypatch, tmp_path):
    (tmp_path / "parent").write_text("in the way")
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "parent" / "cache"))


def disk_full(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**8))


def digits_broken(monkeypatch, tmp_path):
    monkeypatch.setattr("sklearn.datasets.load_digits", fails_with(OSError("digits.csv.gz is truncated")))


def widgets_of_another_generation(monkeypatch, tmp_path):
    monkeypatch.setattr(metadata, "version", version_of("jupyterlab_widgets", "1.1.0"))


def widgets_without_their_labextension(monkeypatch, tmp_path):
    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda *parts: [str(tmp_path)])


def jupyterlab_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(metadata, "version", version_of("jupyterlab", None))


def kernel_missing(monkeypatch, tmp_path):
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", fails_with(NoSuchKernel("python3")))


@pytest.mark.parametrize(
    ("fault", "name", "found", "mend"),
    [
        (python_too_old, "Python", "3.10.13", "kdlab needs Python >=3.11"),
        (package_missing, "Packages", "safetensors is missing (wanted >=", "make setup"),
        (package_too_old, "Packages", "torch is 1.13.1 (wanted >=", "make setup"),
        (torchvision_missing, "PyTorch", "do not load together", "one release"),
        (torchvision_of_another_torch, "PyTorch", "do not load together", "one release"),
        (file_in_place_of_the_cache, "Cache", "cannot be written: File exists", "KDLAB_CACHE"),
        (file_above_the_cache, "Cache", "cannot be written: Not a directory", "KDLAB_CACHE"),
        (disk_full, "Cache", "0.1 GB free", "1 GB free"),
        (digits_broken, "Data", "digits.csv.gz is truncated", "make setup"),
        (widgets_of_another_generation, "Widgets", "jupyterlab_widgets is 1.1.0", "make setup"),
        (widgets_without_their_labextension, "Widgets", "extension is missing", "make setup"),
        (jupyterlab_missing, "JupyterLab", "missing", "make setup"),
        (kernel_missing, "JupyterLab", "kernel is missing", "make setup"),
    ],
)
def test_a_fault_is_named_with_its_mending(fault, name, found, mend, monkeypatch, tmp_path, capsys):
    fault(monkeypatch, tmp_path)
    finding = the(name)
    assert not finding.ok
    assert found in finding.found
    assert mend in finding.mend

    assert doctor.report() == 1
    printed = capsys.readouterr().out
    assert f"WRONG  {name} " in printed
    assert finding.found in printed
    assert f"-> {finding.mend}" in printed


def no_browser(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)


def only_a_browser_that_the_tests_cannot_drive(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if "firefox" in name else None)


def gpu_that_pytorch_cannot_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def no_test_packages(monkeypatch):
    monkeypatch.setattr(metadata, "version", version_of("nbval", None))


def no_ultralytics(monkeypatch):
    monkeypatch.setattr(metadata, "version", version_of("ultralytics", None))


@pytest.mark.parametrize(
    ("fault", "name", "mend"),
    [
        (no_browser, "Browser", "install Chromium"),
        (only_a_browser_that_the_tests_cannot_drive, "Browser", "install Chromium"),
        (gpu_that_pytorch_cannot_use, "Device", "update its driver"),
        (no_test_packages, "Test packages", "make test"),
        (no_ultralytics, "YOLO", GET_YOLO),
    ],
)
def test_what_the_course_can_do_without_is_a_note(fault, name, mend, monkeypatch, capsys):
    fault(monkeypatch)
    finding = the(name)
    assert not finding.ok
    assert mend in finding.mend

    assert doctor.report() == 0
    printed = capsys.readouterr().out
    assert f"note   {name} " in printed
    assert f"-> {finding.mend}" in printed
