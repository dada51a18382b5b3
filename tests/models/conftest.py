"""A machine that no published weights have come to."""

import socket

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty torch cache on a machine without a network."""

    def nobody(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"
