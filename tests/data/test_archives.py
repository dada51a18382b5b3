"""Unpacking: what is in a good archive arrives, and of a bad one nothing, nowhere."""

import errno
import io
import tarfile
import zipfile
from collections import namedtuple

import pytest

from kdlab import InputError
from kdlab.data import archives
from kdlab.data.archives import DamagedArchiveError, unpack

FILES = {"set/a.txt": b"first", "set/deep/er/b.txt": b"second" * 1000, "list.txt": b"beside"}
TAR = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def add(tar, name, content=b"", kind=tarfile.REGTYPE, leads_to=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), leads_to
    tar.addfile(info, io.BytesIO(content))


def pack(path, files):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in files.items():
                file.writestr(name, content)
    else:
        with tarfile.open(path, TAR[path.name.split(".", 1)[1]]) as tar:
            for name, content in files.items():
                add(tar, name, content)
    return path


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def target(tmp_path):
    """Where archives are unpacked; nothing may appear beside it."""
    (tmp_path / "room").mkdir()
    return tmp_path / "room" / "set"


def refused(archive, target, said, error=InputError):
    with pytest.raises(error, match=said):
        unpack([archive], target)
    assert list(target.parent.iterdir()) == []
    assert sorted(path.name for path in target.parent.parent.iterdir()) == sorted([archive.name, "room"])


@pytest.mark.parametrize("kind", ["zip", *TAR])
def test_everything_arrives(tmp_path, target, kind):
    unpack([pack(tmp_path / f"set.{kind}", FILES)], target)
    assert contents(target) == FILES
    assert [path.name for path in target.parent.iterdir()] == ["set"]


def test_folders_in_an_archive_are_no_files(tmp_path, target):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        add(tar, ".", kind=tarfile.DIRTYPE)
        add(tar, "empty", kind=tarfile.DIRTYPE)
        add(tar, "./a.txt", b"first")
    unpack([tmp_path / "set.tar"], target)
    assert contents(target) == {"a.txt": b"first"}


def test_of_a_folder_inside_its_contents_alone_arrive(tmp_path, target):
    unpack([pack(tmp_path / "set.zip", FILES)], target, inside="set")
    assert contents(target) == {"a.txt": b"first", "deep/er/b.txt": FILES["set/deep/er/b.txt"]}


def test_several_archives_make_one_folder(tmp_path, target):
    one, two = pack(tmp_path / "1.zip", {"images/a": b"1"}), pack(tmp_path / "2.tar", {"masks/a": b"2"})
    unpack([one, two], target)
    assert contents(target) == {"images/a": b"1", "masks/a": b"2"}


def test_what_macos_adds_is_left_out(tmp_path, target):
    more = {"__MACOSX/set/._a.txt": b"x", "set/._a.txt": b"x", "set/.DS_Store": b"x"}
    unpack([pack(tmp_path / "set.zip", FILES | more)], target)
    assert contents(target) == FILES


# --- archives that are after something --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    "name", ["../evil.txt", "set/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:\\evil.txt", "\\evil.txt", ".."]
)
def test_a_path_out_of_the_folder_is_refused_and_nothing_at_all_is_unpacked(tmp_path, target, kind, name):
    archive = pack(tmp_path / f"set.{kind}", {"good.txt": b"", name: b"evil"})
    refused(archive, target, "which leads out of the folder. Do not trust this archive")


@pytest.mark.parametrize("leads_to", ["/etc", "../../outside", "inside.txt"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(tmp_path, target, kind, leads_to):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        add(tar, "link", kind=kind, leads_to=leads_to)
        add(tar, "link/evil.txt", b"evil")
    refused(tmp_path / "set.tar", target, "has a link in it, 'link'; wanted: files and folders alone")


def test_links_in_a_zip_are_refused(tmp_path, target):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        file.writestr(link, "/etc")
    refused(tmp_path / "set.zip", target, "has a link in it")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_refused(tmp_path, target, kind):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        add(tar, "zero", kind=kind)
    refused(tmp_path / "set.tar", target, "has a device in it")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused_before_it_goes_off(tmp_path, target, kind, monkeypatch):
    monkeypatch.setattr(archives, "FREE_OF_LIMIT", 2**20)
    archive = pack(tmp_path / f"set.{kind}", {"zeros": bytes(3_000_000)})
    refused(archive, target, r"of 0\.0 MB, would unpack to more than 1 MB")
    monkeypatch.setattr(archives, "MOST_TIMES", 2_000)
    unpack([archive], target)
    assert contents(target) == {"zeros": bytes(3_000_000)}


def test_too_many_files_are_refused(tmp_path, target, monkeypatch):
    monkeypatch.setattr(archives, "MOST_FILES", 2)
    refused(pack(tmp_path / "set.zip", FILES), target, "more than 2 files")


def test_what_does_not_fit_on_the_disk_is_refused(tmp_path, target, monkeypatch):
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(100))
    refused(pack(tmp_path / "set.zip", FILES), target, "holds 0 MB and the disk of .* has 0 MB free. Make room")
    both = [pack(tmp_path / name, {name: bytes(60)}) for name in ("1.zip", "2.zip")]  # each of which would fit alone
    with pytest.raises(InputError, match=r"2\.zip holds"):
        unpack(both, target)


def test_a_disk_that_gets_full_is_no_damage_of_the_archive(tmp_path, target, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    with pytest.raises(InputError, match="could not be written: the disk is full") as error:
        unpack([pack(tmp_path / "set.zip", FILES)], target)
    assert not isinstance(error.value, DamagedArchiveError)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_is_there_twice_is_refused(tmp_path, target):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        add(tar, "a", b"1")
        add(tar, "./a", b"2")
    refused(tmp_path / "set.tar", target, "has './a' twice")
    (tmp_path / "set.tar").unlink()
    both = [pack(tmp_path / name, {"a": b"1"}) for name in ("1.zip", "2.zip")]
    with pytest.raises(InputError, match=r"2\.zip has a, which is there already"):
        unpack(both, target)
    assert not target.exists()


# --- archives that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("keep", [0, 40, 0.5, 0.7])
def test_one_that_is_cut_short_is_told_and_leaves_nothing(tmp_path, target, kind, keep):
    archive = pack(tmp_path / f"set.{kind}", {"noise": bytes(i * i % 251 for i in range(30_000)), "b": bytes(30_000)})
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * keep) if keep < 1 else keep])
    refused(archive, target, "is neither a zip nor a tar|damaged, cut short or encrypted", DamagedArchiveError)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_flipped_bytes_are_found(tmp_path, target, kind):
    archive = pack(tmp_path / f"set.{kind}", {"noise": bytes(i * i * i % 251 for i in range(30_000))})
    content = bytearray(archive.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20] = bytes(255 - byte for byte in content[middle : middle + 20])
    archive.write_bytes(content)
    refused(archive, target, "is neither a zip nor a tar|damaged", DamagedArchiveError)


def test_another_kind_of_file_is_told(tmp_path, target):
    (tmp_path / "set.rar").write_bytes(b"Rar!\x1a\x07" + bytes(1000))
    refused(tmp_path / "set.rar", target, "is neither a zip nor a tar archive. Unpack it by hand")
    (tmp_path / "set.rar").unlink()
    with pytest.raises(InputError, match=r"gone\.zip: no such file"):
        unpack([tmp_path / "gone.zip"], target)


def test_an_archive_without_what_is_wanted_is_told(tmp_path, target):
    archive = pack(tmp_path / "set.zip", FILES)
    with pytest.raises(InputError, match=r"has no file in a folder 'other' in it; found: list\.txt, set\. Is it"):
        unpack([archive], target, inside="other")
    refused(pack(archive, {}), target, "has no file in it; found: none")


def test_a_folder_that_is_there_is_left_alone(tmp_path, target):
    target.mkdir()
    (target / "mine").write_text("mine")
    with pytest.raises(InputError, match="exists already. Delete it, or name another"):
        unpack([pack(tmp_path / "set.zip", FILES)], target)
    assert contents(target) == {"mine": b"mine"}


def test_what_a_kill_left_is_no_obstacle_and_never_mixed_in(tmp_path, target):
    left = target.with_name(".set.partial")
    left.mkdir()
    (left / "old").write_text("half a file")
    unpack([pack(tmp_path / "set.zip", FILES)], target)
    assert contents(target) == FILES
    assert [path.name for path in target.parent.iterdir()] == ["set"]
