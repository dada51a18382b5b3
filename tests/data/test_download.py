"""Downloads from a server that has every fault: what arrives under its name is whole and right, or nothing is there."""

import hashlib
import multiprocessing
import os
import random
import re
import socket
import ssl
import time
import urllib.error
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest

from kdlab import InputError
from kdlab.data import download as module
from kdlab.data.download import download

CONTENT = random.Random(0).randbytes(100_000)
HALF = len(CONTENT) // 2
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
SHA = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def get(server, tmp_path):
    """Downloads the server's one file; ``get.path`` is where it goes."""
    server.files["set.zip"] = CONTENT

    def get(digest=SHA, **options):
        download(f"{server.url}set.zip", get.path, digest, **{"wait": 0.001, "timeout": 5} | options)
        return get.path.read_bytes()

    get.path = tmp_path / "archives" / "set.zip"
    get.partial = get.path.with_name("set.zip.partial")
    return get


def left(get):
    return sorted(path.name for path in get.path.parent.iterdir())


def refused(get, said, **options):
    with pytest.raises(InputError, match=said):
        get(**options)
    assert not get.path.exists()


@pytest.mark.parametrize("digest", [None, MD5, SHA])
def test_a_whole_file_arrives_under_its_name_alone(get, digest):
    assert get(digest) == CONTENT
    assert left(get) == ["set.zip"]


def test_a_file_that_is_there_is_verified_and_not_asked_for(get, server):
    get()
    server.requests.clear()
    assert get() == CONTENT
    get.path.write_bytes(b"other")
    with pytest.raises(InputError, match=r"set\.zip has the sha256 .*wanted: .*Delete it, or move it away"):
        get()
    assert (get.path.read_bytes(), server.requests) == (b"other", [])


# --- what is seen of it -----------------------------------------------------------------------------------------------


@pytest.fixture
def draws(monkeypatch, capsys):
    """All that the progress bar has drawn on stderr since the last call; here it draws at every block."""
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setattr(module, "progress", partial(module.progress, mininterval=0))

    def draws():
        out, err = capsys.readouterr()
        assert out == ""
        return [drawn for drawn in err.split("\r") if drawn.strip()]

    return draws


def test_a_download_shows_its_name_and_how_many_of_all_bytes_there_are(get, draws):
    get()
    drawn = draws()
    assert all(one.startswith("set.zip: ") for one in drawn)
    assert "  0%|          | 0.00/100k [" in drawn[1]
    assert "100%|██████████| 100k/100k [" in drawn[-1]


def test_what_goes_on_is_shown_from_the_byte_where_it_does(get, server, draws):
    """And its speed is that of the bytes that come, not of those that were there."""
    server.faults = ["drop", 404]
    refused(get, "404")
    assert " 50%|█████     | 50.0k/100k [" in draws()[-1]
    get()
    began, resumed, *_, last = draws()[1:]
    assert "  0%|" in began
    assert re.search(r" 50%\|█████     \| 50\.0k/100k \[00:00<\?, +(0\.00|\?)B/s", resumed)
    assert "100%|██████████| 100k/100k [" in last


def test_a_download_is_silent_where_progress_is_not_wanted(get, capsys):
    get()
    assert capsys.readouterr() == ("", "")


# --- what another try gets over ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["drop", "reset"])
def test_a_connection_that_breaks_off_goes_on_where_it_was(get, server, fault):
    server.faults = [fault, fault]
    assert get(None) == CONTENT
    assert server.ranges[0] is None
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in server.ranges[1:]]
    assert 0 < starts[0] <= HALF
    assert starts == sorted(set(starts))
    if fault == "drop":
        assert starts == [HALF, HALF + HALF // 2]
    assert {request.get("If-Range") for request in server.requests[1:]} == {f'"{hash(CONTENT)}"'}


def test_a_server_that_knows_no_ranges_starts_again(get, server):
    server.faults = ["drop", "no range"]
    assert get(None) == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("tags", [False, "weak"])
def test_a_server_that_names_no_version_is_asked_for_the_rest_only_where_a_hash_will_tell(get, server, tags):
    server.tags = tags
    server.faults = ["drop"]
    assert get(None) == CONTENT
    assert server.ranges == [None, None]
    get.path.unlink()
    server.requests.clear()
    server.faults = ["drop"]
    assert get(SHA) == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_a_file_that_has_changed_meanwhile_is_not_glued_to_its_old_beginning(get, server):
    server.faults = ["drop", 500, 500]
    refused(get, "answers 500", digest=None, tries=2)
    server.files["set.zip"] = new = CONTENT[::-1]
    assert get(None) == new


@pytest.mark.parametrize("tags", [True, False])
def test_the_beginning_of_another_address_is_not_gone_on_with(get, server, tags):
    server.tags = tags
    server.always = "drop"
    refused(get, "broke off", digest=None, tries=1, wait=0)
    server.always = None
    server.files["other.zip"] = other = CONTENT[::-1]
    download(f"{server.url}other.zip", get.path, f"sha256:{hashlib.sha256(other).hexdigest()}")
    assert get.path.read_bytes() == other


def test_a_file_that_has_become_shorter_than_its_old_beginning_is_asked_for_anew(get, server):
    server.tags = False
    server.faults = ["drop", 500]
    refused(get, "answers 500", tries=1)
    server.files["set.zip"] = new = CONTENT[: HALF // 2]
    assert get(f"sha256:{hashlib.sha256(new).hexdigest()}") == new


@pytest.mark.parametrize("fault", [500, 503, 429, "no answer"])
def test_faults_that_pass_are_waited_for(get, server, fault):
    server.faults = ["drop", fault, fault]
    assert get() == CONTENT
    assert len(server.requests) == 4


def test_another_part_than_the_one_asked_for_is_thrown_away(get, server):
    server.faults = ["drop", "wrong part"]
    assert get(None) == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-", None]


def test_a_server_that_says_no_length_is_read_to_its_end(get, server):
    server.faults = ["chunked drop", "chunked"]
    assert get(None) == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_silence_is_a_fault(get, server):
    server.faults = ["silent"]
    assert get(timeout=0.2) == CONTENT


def test_pauses_double_and_new_bytes_start_them_again(get, server, monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.faults = [503, 503, 503, "drop", 503, 503]
    assert get(wait=1.0) == CONTENT
    assert pauses == [1, 2, 4, 1, 1, 2]


def test_a_whole_file_that_was_killed_before_it_got_its_name_is_not_asked_for_again(get, server, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_verify", killed)
        with pytest.raises(KeyboardInterrupt):
            get()
    assert (left(get), get.path.exists()) == (["set.zip.partial", "set.zip.partial.json"], False)
    assert get() == CONTENT
    assert server.ranges == [None, f"bytes={len(CONTENT)}-"]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_a_kill_in_the_middle_leaves_no_file_and_the_next_call_goes_on(get, server):
    server.faults = ["stall"]
    process = multiprocessing.get_context("fork").Process(target=get, args=[None], daemon=True)
    process.start()
    while not (get.partial.exists() and get.partial.stat().st_size):
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    server.released.set()
    have = get.partial.stat().st_size
    assert 0 < have <= HALF
    assert left(get) == ["set.zip.partial", "set.zip.partial.json"]
    assert get(None) == CONTENT
    assert server.ranges == [None, f"bytes={have}-"]
    assert left(get) == ["set.zip"]


# --- what is given up -------------------------------------------------------------------------------------------------


def test_other_bytes_than_the_hash_says_are_refused_and_deleted(get, server):
    server.always = "wrong bytes"
    refused(get, r"has the md5 .*wanted: .*What had arrived is deleted", digest=MD5)
    assert left(get) == []


@pytest.mark.parametrize(("code", "said"), [(404, "404 Not Found"), (403, "403 Forbidden"), (410, "410 Gone")])
def test_a_refusal_is_final_at_once(get, server, code, said):
    server.always = code
    refused(get, rf"{said}\. The file is not there, or not for everybody: look at the page")
    assert len(server.requests) == 1


def test_a_server_that_stays_broken_is_given_up_and_what_has_arrived_is_kept(get, server):
    server.faults = ["drop"]
    server.always = 500
    refused(get, rf"answers 500 .*\(3 tries\).*{HALF:,} bytes are kept in .*: run again to go on", tries=3)
    assert len(server.requests) == 1 + 3
    server.always = None
    assert get() == CONTENT
    assert server.ranges[-1] == f"bytes={HALF}-"


def test_a_length_that_is_never_reached_is_given_up(get, server):
    server.always = "longer"
    refused(get, r"\(2 tries\)", digest=None, tries=2)


def test_a_length_that_is_corrected_is_believed(get, server):
    server.faults = ["longer"]
    assert get(None) == CONTENT


def test_a_length_that_is_too_short_is_told_by_the_hash(get, server):
    server.always = "shorter"
    refused(get, "has the sha256")


def test_a_server_that_forgets_what_it_sent_is_not_asked_for_ever(get, server):
    """Every answer starts again and breaks off: bytes come, but never a new one."""
    server.tags = False
    server.always = "drop"
    refused(get, "broke off after 50,000 of 100,000 bytes", digest=None, tries=2)
    assert len(server.requests) == 3


def test_a_web_page_is_no_file(get, server):
    server.always = "web page"
    refused(get, "is a web page and not a file.*with a browser")
    assert len(server.requests) == 1


def test_where_nobody_listens_the_question_is_whether_there_is_a_network(get, monkeypatch):
    with pytest.raises(InputError, match=r"cannot be reached .*Is this machine online"):
        download("http://127.0.0.1:9/set.zip", get.path, tries=2, wait=0.001)

    def offline(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(InputError, match=r"cannot be reached .*name resolution.*Is this machine online"):
        download("http://nowhere.invalid/set.zip", get.path, tries=1, wait=0.001)


def test_a_certificate_that_is_not_valid_is_not_tried_again(get, monkeypatch):
    asked = []

    def unsafe(request, timeout):
        asked.append(request)
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate"))

    monkeypatch.setattr(module.urllib.request, "urlopen", unsafe)
    refused(get, "the server's certificate is not valid .*self-signed")
    assert len(asked) == 1


@pytest.mark.parametrize("url", ["", "set.zip", "ftp://host/set.zip", "file:///etc/passwd", "https://host"])
def test_what_is_no_address_of_a_file_is_refused(tmp_path, url):
    with pytest.raises(InputError, match="is no address of a file; wanted: one that starts with http"):
        download(url, tmp_path / "set.zip")


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_a_file_is_on_the_disk_before_it_gets_its_name(get, monkeypatch):
    """A power cut after it would else leave a file of the right name and the wrong bytes."""
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: events.append(os.fstat(file).st_size) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda old, new: events.append(Path(new).name) or replace(old, new))
    get(None)
    assert events[-2:] == [len(CONTENT), "set.zip"]


def test_what_does_not_fit_is_refused_before_it_is_fetched(get, server, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(10**6, 10**6 - HALF, HALF))
    refused(get, r"0\.1 MB are still to come and the disk of .* has 0\.1 MB free. Make room")
    assert not get.partial.exists()


def test_what_is_there_already_needs_no_room(get, server, monkeypatch):
    server.faults = ["drop", 404]
    refused(get, "404")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(10**6, 10**6 - HALF, HALF))
    assert get() == CONTENT


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_disk_that_gets_full_is_told(get):
    get.path.parent.mkdir()
    get.partial.symlink_to("/dev/full")
    refused(get, "the disk is full. .*make room, and the same command goes on")


def test_a_place_that_cannot_be_written_is_told(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written: .*Choose another folder"):
        download(f"{server.url}set.zip", tmp_path / "file" / "set.zip")
