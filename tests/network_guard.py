"""What all tests are held against: nobody looks for a network."""

import socket
from contextlib import contextmanager
from ipaddress import ip_address

import pytest


@contextmanager
def no_network():
    """Whoever looks for another host or connects to one is told no; and refuse to end where someone has.

    Of Python in this process alone: not of its children, nor of sockets made in C++, such as torch.distributed's.
    """
    asked = []

    def refusing(call, host_of):
        def refuse(*args, **kwargs):
            if _is_here(host := host_of(*args, **kwargs)):
                return call(*args, **kwargs)
            asked.append(host)
            raise OSError(f"there is no network in the tests, and so no {host}")

        return refuse

    def connected(own, address):
        return address[0] if own.family in (socket.AF_INET, socket.AF_INET6) else None

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refusing(getattr(socket.socket, name), connected))
        patch.setattr(socket, "getaddrinfo", refusing(socket.getaddrinfo, lambda host, *_, **__: host))
        yield asked
    nobody_in(asked)


def nobody_in(asked):
    """Refuse what has been asked for since the last time, even where the error was caught."""
    found = asked.copy()
    asked.clear()
    assert not found, f"asked for {found}"


def _is_here(host):
    if host in (None, "localhost", socket.gethostname()):  # None: no host but this one
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
