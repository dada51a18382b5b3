"""Shapes are checked, progress bars are silent, and nothing touches the network or the user's own cache."""

import os
import signal

os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported

import kdlab

kdlab.check_shapes()

import network_guard  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def users_cache(tmp_path_factory):
    """Set the user's own KDLAB_CACHE (or None) aside; yields it, for tests that take minutes without what is there."""
    users = os.environ.get("KDLAB_CACHE")
    os.environ["KDLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return users


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Shells that start the tests in the background have them ignore Ctrl-C, which some of them send."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """For the fixtures of modules, too; yields what has been asked for."""
    with network_guard.no_network() as asked:
        yield asked


@pytest.fixture(autouse=True)
def nobody_asks(no_network):
    """Held against each test once it is done, which is then the one to be named."""
    yield
    network_guard.nobody_in(no_network)


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)


@pytest.fixture
def shapes_unchecked():
    """For the sentence that a user sees where the shape checks are off, as they are by default."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def one_thread():
    """For tests of equal bits, and of many small trainings, which two threads make slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
