"""One file from the network, whole and verified or not at all. What breaks off goes on where it was."""

import errno
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from kdlab.data.images import printable
from kdlab.data.manifest import file_hash
from kdlab.errors import InputError
from kdlab.files import write_whole
from kdlab.progress import progress

BLOCK = 2**18
BUSY = (408, 425, 429)  # answers of a server below 500 that another try may change


class _BrokenOff(Exception):  # noqa: N818, it is no error yet
    """What another try may get over."""


def download(
    url: str, path: Path, digest: str | None = None, *, tries: int = 5, wait: float = 1.0, timeout: float = 30.0
) -> None:
    """Get a file by HTTP. Until it is whole and its hash is right, it is called ``path`` with ".partial" behind.

    After a fault, and after a kill at the next call, what has arrived is kept and the rest is asked for (Range), where
    the server says that the file is still the same (If-Range) or a hash will say it at the end; else all is asked for
    again. Without a hash a wrong byte cannot be told, only a wrong length.

    Args:
        path: if it exists, it is verified instead.
        digest: the hash that the file must have, such as "md5:9e10..." or "sha256:e3b0...".
        tries: without a new byte, before it is given up; the first pause is ``wait`` seconds, each further one twice as
            long.
        timeout: seconds without an answer that count as a fault.

    Raises:
        InputError: no HTTP address; the server refuses, sends a web page or other bytes than the hash says (what has
            arrived is then deleted); it cannot be reached, or breaks off, in all tries (what has arrived is kept); the
            file does not fit on the disk.
    """
    if not re.match(r"https?://[^/]+/", url):
        raise InputError(f"{url!r} is no address of a file; wanted: one that starts with http:// or https://.")
    if path.exists():
        _verify(path, digest, "Delete it, or move it away, to download it again.")
        return
    partial = path.with_name(f"{path.name}.partial")
    _make_folder(path.parent)
    furthest, failures = _size(partial), 0
    with progress(desc=path.name, unit="B", unit_scale=True) as bar:
        while True:
            try:
                _go_on(url, partial, digest, timeout, bar)
                break
            except _BrokenOff as fault:
                failures = 0 if _size(partial) > furthest else failures + 1
                furthest = max(furthest, _size(partial))
                if failures == tries:
                    size = _size(partial)
                    kept = f" {size:,} bytes are kept in {printable(partial)}: run again to go on." if size else ""
                    raise InputError(
                        f"{url} could not be downloaded: {fault} ({tries} tries). Is this machine online, and behind a "
                        f"proxy that HTTPS_PROXY should name?{kept}"
                    ) from fault
                time.sleep(wait * 2 ** max(failures - 1, 0))
    try:
        _verify(partial, digest, "What had arrived is deleted: run again, and if it happens again, ask the source.")
    except InputError:
        partial.unlink()
        _note(partial).unlink()
        raise
    os.replace(partial, path)
    _note(partial).unlink()


def _go_on(url: str, partial: Path, digest: str | None, timeout: float, bar: tqdm) -> None:
    """Ask for what is missing and write what comes; returns when the file is whole."""
    validator = _validator(partial, url)
    have = _size(partial) if validator or (digest and validator is not None) else 0
    headers = {"User-Agent": "kdlab", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            if error.headers.get("Content-Range") == f"bytes */{have}":  # whole already, and killed before the renaming
                return
            partial.unlink()
            raise _BrokenOff(f"the server has no byte after the first {have:,}") from error
        if error.code >= 500 or error.code in BUSY:
            raise _BrokenOff(f"the server answers {error.code} {error.reason}") from error
        raise InputError(
            f"{url}: the server answers {error.code} {error.reason}. The file is not there, or not for everybody: look "
            "at the page of the data set for its address."
        ) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise InputError(f"{url}: the server's certificate is not valid ({error.reason}).") from error
        raise _BrokenOff(f"the server cannot be reached ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(f"no answer ({error or type(error).__name__})") from error
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise InputError(
                f"{url} is a web page and not a file, perhaps one that asks for a login or a click. Download the file "
                "with a browser."
            )
        if answer.status != 206:
            have = 0
        total = _total(answer, have, partial)
        _check_space(partial, (total or have) - have)
        if not have:
            _write_note(partial, url, answer)
        bar.reset(total)
        bar.n = bar.last_print_n = bar.initial = have  # update() would take them for bytes that came in no time
        bar.refresh()
        have += _append(answer, partial, "ab" if have else "wb", bar)
    if total is not None and have != total:
        raise _BrokenOff(f"the connection broke off after {have:,} of {total:,} bytes")


def _total(answer: http.client.HTTPResponse, have: int, partial: Path) -> int | None:
    """The length of the whole file, where the server says it."""
    if answer.status != 206:
        return None if answer.length is None else int(answer.length)
    part = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if part is None or int(part[1]) != have:
        partial.unlink()
        raise _BrokenOff(f"the server sends another part than the one from byte {have:,} that it was asked for")
    return None if part[2] == "*" else int(part[2])


def _append(answer: http.client.HTTPResponse, unfinished: Path, mode: str, bar: tqdm) -> int:
    """Write what comes and return how many bytes came."""
    count = 0
    try:
        with unfinished.open(mode) as file:
            while block := _read(answer):
                file.write(block)
                count += len(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _cannot_write(unfinished, error) from error
    return count


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read1(BLOCK)
    except (OSError, http.client.HTTPException, ValueError) as error:  # the last for a chunk whose length is none
        raise _BrokenOff(f"the connection broke off ({error or type(error).__name__})") from error


# --- on the disk -----------------------------------------------------------------------------------------------------


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(path: Path, error: OSError) -> InputError:
    if error.errno == errno.ENOSPC:
        return InputError(f"the disk is full. {printable(path)} is kept: make room, and the same command goes on.")
    return InputError(f"{printable(path)} cannot be written: {error.strerror}. Choose another folder.")


def _check_space(partial: Path, missing: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if missing > free:
        raise InputError(
            f"{missing / 1e6:,.1f} MB are still to come and the disk of {printable(partial.parent)} has "
            f"{free / 1e6:,.1f} MB free. Make room, or choose another folder."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _verify(path: Path, digest: str | None, advice: str) -> None:
    if digest is None:
        return
    algorithm, wanted = digest.split(":")
    found = file_hash(path, algorithm)
    if found != wanted:
        raise InputError(f"{printable(path)} has the {algorithm} {found}; wanted: {wanted}. {advice}")


# --- beside the beginning of a file: its address, and what the server calls its version -------------------------------


def _note(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _write_note(partial: Path, url: str, answer: http.client.HTTPResponse) -> None:
    tag = answer.headers.get("ETag", "")
    validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")  # a weak tag is no proof
    write_whole(_note(partial), json.dumps({"url": url, "validator": validator}).encode())


def _validator(partial: Path, url: str) -> str | None:
    """For If-Range: "" where the server gave none, None where what is there is not known to belong to the address."""
    try:
        note = json.loads(_note(partial).read_bytes())
        return str(note["validator"]) if note["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
