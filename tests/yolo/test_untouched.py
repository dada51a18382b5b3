"""After all of this: ultralytics is as it was installed, and nobody has looked for a network."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("ultralytics")

from kdlab import yolo


def test_no_file_of_ultralytics_has_changed(trained, scenes, settings, ultralytics_files, tmp_path):
    yolo.distill(
        trained.best, trained.best, scenes, yolo.Distillation(), settings, out=tmp_path / "run", device="cpu"
    )  # fmt: skip
    assert ultralytics_files.now() == ultralytics_files.before


def test_nothing_reached_for_the_network(no_network):
    assert no_network == []


def test_importing_it_asks_for_no_host_and_leaves_all_as_it_was():
    code = """if True:
        import os, socket
        def refuse(*args, **kwargs):
            raise SystemExit(f"asked for {args}")
        socket.socket.connect = socket.getaddrinfo = refuse
        import numpy, torch, PIL.Image
        def state():
            printed = str(numpy.get_printoptions()), str(torch.rand(40))
            return PIL.Image.open, torch.save, *printed, *os.environ.values()
        torch.manual_seed(0)
        before = state()
        import kdlab.yolo
        torch.manual_seed(0)
        assert state() == before
        print(*os.environ)
    """
    ours = {"YOLO_OFFLINE", "YOLO_AUTOINSTALL", "OMP_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    licence, names = done.stdout.splitlines()
    assert "AGPL-3.0" in licence
    assert not ours & set(names.split())
