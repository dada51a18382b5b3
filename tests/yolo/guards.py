"""What all tests of this folder are held against: ultralytics' files stay, and nobody looks for a network."""

import hashlib
import importlib.metadata
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = ("127.0.0.1", "::1", "localhost")


def fingerprint() -> str:
    """Of all files of the installed ultralytics but Python's own caches."""
    digest = hashlib.sha256()
    for file in sorted(importlib.metadata.files("ultralytics") or []):
        path = Path(file.locate())
        if path.is_file() and path.suffix != ".pyc":
            digest.update(str(file).encode() + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def unchanged_files():
    """Refuse to end with other files of ultralytics than at the start."""
    before = fingerprint()
    yield
    assert fingerprint() == before, "a file of the installed ultralytics has changed"


@contextmanager
def no_network():
    """Whoever looks for another host or connects to one is told no; and refuse to end where someone has."""
    asked = []

    def refusing(call, host_of):
        def refuse(*args, **kwargs):
            if (host := host_of(*args)) in HERE:
                return call(*args, **kwargs)
            asked.append(host)
            raise OSError("there is no network in this test")

        return refuse

    def host_of(own, address):
        return "localhost" if own.family == socket.AF_UNIX else address[0]

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refusing(getattr(socket.socket, name), host_of))
        patch.setattr(socket, "getaddrinfo", refusing(socket.getaddrinfo, lambda host, *_, **__: host))
        yield asked
    assert not asked, f"asked for {asked}"
