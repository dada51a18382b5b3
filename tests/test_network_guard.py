"""No test reaches another machine than this one: what guards them works."""

import socket
from contextlib import suppress

import pytest
from network_guard import no_network, nobody_in


@pytest.fixture
def guarded():
    """A guard of its own, which may be asked."""
    with no_network() as asked:
        yield asked
        asked.clear()


@pytest.mark.parametrize("connect", ["connect", "connect_ex"])
def test_a_connection_to_another_machine_is_refused_by_name_and_nothing_is_sent(guarded, connect):
    with socket.socket(type=socket.SOCK_DGRAM) as opened:
        with pytest.raises(OSError, match=r"there is no network in the tests, and so no 192\.0\.2\.1"):
            getattr(opened, connect)(("192.0.2.1", 80))
        assert opened.getsockname()[1] == 0, "it has got no port to send from"
    assert guarded == ["192.0.2.1"]


@pytest.mark.parametrize("host", ["example.org", "2001:db8::1", "localhost.example.org", "128.0.0.1"])
def test_another_machine_is_not_looked_up(guarded, host):
    for look_up in (socket.getaddrinfo, lambda *address: socket.create_connection(address)):
        with pytest.raises(OSError, match=f"no network in the tests, and so no {host}"):
            look_up(host, 80)
    assert guarded == [host] * 2


def test_this_machine_is_reached_and_looked_up(guarded):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as opened:
        assert opened.getpeername() == server.getsockname()
        with socket.socket() as another:
            assert another.connect_ex(("localhost", server.getsockname()[1])) == 0
    for host in ("localhost", "127.0.0.2", "::1", None):
        assert socket.getaddrinfo(host, 80)
    assert guarded == []


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no sockets that are files")
def test_so_are_sockets_that_are_files(guarded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a short path, as the system wants it
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as opened:
        server.bind("socket")
        server.listen()
        opened.connect("socket")
    assert guarded == []


def test_who_asks_is_found_even_if_he_takes_the_refusal(guarded):
    with socket.socket() as opened, suppress(OSError):
        opened.connect(("192.0.2.1", 80))
    with pytest.raises(AssertionError, match=r"asked for \['192\.0\.2\.1'\]"):
        nobody_in(guarded)
    nobody_in(guarded)


def test_every_test_is_guarded(no_network):
    with pytest.raises(OSError, match="there is no network in the tests"):
        socket.getaddrinfo("example.org", 80)
    with pytest.raises(AssertionError, match="asked for"):
        nobody_in(no_network)
