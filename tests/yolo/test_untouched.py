"""ultralytics stays as it was installed, and asks for no host: what guards this folder's tests works."""

import os
import subprocess
import sys

import guards
import pytest

pytest.importorskip("ultralytics")


def test_a_file_that_changes_is_found(monkeypatch):
    prints = iter(["before", "after"])
    monkeypatch.setattr(guards, "fingerprint", lambda: next(prints))
    with pytest.raises(AssertionError, match="has changed"), guards.unchanged_files():
        pass


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
