"""The manifest tells what has changed, in the format of sha256sum."""

import hashlib
import shutil
import subprocess

import pytest

from kdlab import InputError
from kdlab.data.manifest import MANIFEST, Differences, differences, file_hash, hashes, record

FILES = {"a.txt": b"one", "deep/b c.txt": b"two", "meta/list.json": b"[]", ".hidden": b"x"}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "set"


def test_it_has_the_hash_of_every_file_that_is_not_hidden_or_left_out(folder):
    found = record(folder, skip=["meta"])
    assert found == hashes(folder) == {
        name: hashlib.sha256(FILES[name]).hexdigest() for name in ("a.txt", "deep/b c.txt")
    }  # fmt: skip
    assert differences(folder) == Differences((), ())
    assert str(differences(folder)) == "none"
    assert not any(differences(folder))


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum on this machine")
def test_sha256sum_reads_it(folder):
    record(folder)
    run = subprocess.run(["sha256sum", "--strict", "-c", MANIFEST], cwd=folder, capture_output=True, text=True)
    assert (run.returncode, run.stdout.count(": OK")) == (0, 3)


def test_what_is_missing_or_changed_is_told(folder):
    record(folder)
    (folder / "a.txt").unlink()
    (folder / "deep" / "b c.txt").write_bytes(b"twO")
    (folder / "new").write_bytes(b"new")
    assert differences(folder) == Differences(("a.txt",), ("deep/b c.txt",))
    assert str(differences(folder)) == "1 missing: a.txt; 1 with other bytes: deep/b c.txt"


def test_a_second_record_adds_what_is_new_and_keeps_what_is_known(folder):
    first = record(folder)
    (folder / "a.txt").write_bytes(b"changed")
    (folder / "new").write_bytes(b"new")
    assert record(folder) == first | {"new": hashlib.sha256(b"new").hexdigest()}
    assert differences(folder) == Differences((), ("a.txt",))


def test_the_same_files_give_the_same_manifest(folder, tmp_path):
    record(folder)
    shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns(MANIFEST))
    record(tmp_path / "other")
    assert (folder / MANIFEST).read_bytes() == (tmp_path / "other" / MANIFEST).read_bytes()


@pytest.mark.parametrize("text", ["nonsense\n", "0" * 63 + "  a.txt\n", "0" * 64 + " a.txt\n"])
def test_what_is_no_manifest_is_told(folder, text):
    with pytest.raises(InputError, match="cannot be read .No such file.*nothing is known of what .*set should hold"):
        hashes(folder)
    (folder / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=f"has '{text[:8]}.*wanted: a hash, two spaces, a path"):
        differences(folder)


def test_a_name_with_a_line_break_is_refused(folder):
    (folder / "a\nb").write_bytes(b"")
    with pytest.raises(InputError, match=r"'a\\nb' in .* has a line break. Rename it"):
        record(folder)
    assert not (folder / MANIFEST).exists()


def test_a_name_may_have_characters_that_break_lines_elsewhere(folder):
    for character in "\v\f\x1c\x85\u2028":
        (folder / f"a{character}b").write_bytes(b"")
    assert record(folder) == hashes(folder)
    assert not any(differences(folder))


def test_hashes_are_those_of_hashlib(folder):
    assert file_hash(folder / "a.txt", "md5") == hashlib.md5(b"one").hexdigest()
