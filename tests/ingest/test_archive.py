import stat
import struct
import zipfile
from pathlib import Path

import pytest

from app.errors import CancelledError, InputError
from app.ingest import archive
from app.ingest.codebase import load_codebase


def zipped(path: Path, files: dict[str, bytes | str], **options) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def linked(path: Path, name: str, target: str) -> Path:
    """A zip of one source file and one symbolic link."""
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("src/a.py", "x = 1\n")
        info = zipfile.ZipInfo(name)
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(info, target)
    return path


@pytest.mark.parametrize(
    "name",
    ["../evil.py", "a/../../evil.py", "/etc/evil", "C:\\evil.py", "C:evil", "a\\..\\..\\evil.py", "\\\\host\\evil"],
)  # fmt: skip
def test_names_that_lead_out_are_refused(name, tmp_path):
    path = zipped(tmp_path / "t.zip", {"good.py": "x = 1\n", name: "x = 2\n"})
    with pytest.raises(InputError, match=r"t\.zip: refused, it holds the name .*evil.*leads out"):
        load_codebase(path, "t.zip")


def test_a_name_with_a_nul_is_refused(tmp_path):
    path = zipped(tmp_path / "t.zip", {"good.pyXevil": "x = 1\n"})
    path.write_bytes(path.read_bytes().replace(b"good.pyXevil", b"good.py\0evil"))
    with pytest.raises(InputError, match="refused, it holds the name"):
        load_codebase(path, "t.zip")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "C:\\x", "../src/../../x"])
def test_links_that_lead_out_are_refused(target, tmp_path):
    with pytest.raises(InputError, match=r't\.zip: refused, the link "src/link\.py" in it leads out'):
        load_codebase(linked(tmp_path / "t.zip", "src/link.py", target), "t.zip")


@pytest.mark.parametrize("target", ["a.py", "../README.md", "./a.py", "..", "../", "."])
def test_links_that_stay_inside_are_listed(target, tmp_path):
    document = load_codebase(linked(tmp_path / "t.zip", "src/link.py", target), "t.zip")
    assert [item.reason for item in document.skipped] == ["symbolic link"]
    assert len(document.parts) == 1


@pytest.mark.parametrize("depth", [22, 2_000, 30_000])
def test_deep_folders_are_left_out_whatever_their_depth(depth, tmp_path):
    deep = "d/" * depth + "b.py"
    document = load_codebase(zipped(tmp_path / "t.zip", {"a.py": "x = 1\n", deep: "y = 1\n"}), "t.zip")
    assert [part.label for part in document.parts] == ["a.py"]
    assert [(item.name.count("/"), item.reason) for item in document.skipped] == [(21, "more than 20 folders deep")]


def test_cancel_is_asked_while_looking_for_files(tmp_path):
    path = zipped(tmp_path / "t.zip", {"a.py": "x = 1\n"})
    asked = iter([False, True])
    with pytest.raises(CancelledError, match="looking for files"):
        load_codebase(path, "t.zip", cancelled=lambda: next(asked))


@pytest.mark.parametrize(("raw", "name"), [("käse/größe.py".encode(), "käse/größe.py"), (b"k\x84se.py", "käse.py")])
def test_names_are_utf8_wherever_they_can_be(raw, name, tmp_path):
    path = zipped(tmp_path / "t.zip", {"a.py": "x = 1\n", "X" * len(raw): "y = 1\n"})
    path.write_bytes(path.read_bytes().replace(b"X" * len(raw), raw))
    document = load_codebase(path, "t.zip")
    assert name in [part.label for part in document.parts]


def test_a_bomb_is_refused(tmp_path):
    path = zipped(tmp_path / "t.zip", {"a.py": "x = 1\n", "bomb.txt": b"0" * (20 << 20)})
    with pytest.raises(InputError, match=r"t\.zip: looks like a zip bomb, 0\.0 MB that unpack to 21 MB"):
        load_codebase(path, "t.zip")


def test_many_small_bombs_are_refused(tmp_path):
    path = zipped(tmp_path / "t.zip", {f"{i}.txt": b"0" * 1_000_000 for i in range(20)})
    with pytest.raises(InputError, match="looks like a zip bomb"):
        load_codebase(path, "t.zip")


def test_a_bomb_beside_large_files_is_refused(tmp_path):
    noise = bytes(range(256)) * 40
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as packed:
        packed.writestr("noise.bin", noise * 100)
        packed.writestr("bomb.txt", b"0" * (20 << 20), zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"t\.zip: bomb\.txt: looks like a zip bomb"):
        load_codebase(tmp_path / "t.zip", "t.zip")


def test_bytes_are_counted_as_they_come_out():
    meter = archive.Meter("t.zip", 200_000)
    meter.add(15 << 20)
    with pytest.raises(InputError, match="zip bomb"):
        meter.add(6 << 20)
    meter = archive.Meter("t.zip", 500 << 20)
    meter.add(1 << 30)
    with pytest.raises(InputError, match="more than 1 GB"):
        meter.add(1)


def test_a_size_that_lies_is_listed_as_damage(tmp_path):
    path = zipped(tmp_path / "t.zip", {"a.py": "x = 1\n", "liar.py": "y = 1\n" * 1000})
    data = path.read_bytes().replace(struct.pack("<I", 6000), struct.pack("<I", 60))
    path.write_bytes(data)
    document = load_codebase(path, "t.zip")
    assert [part.label for part in document.parts] == ["a.py"]
    assert "damaged in the archive" in document.skipped[0].reason


def test_encrypted_members_are_refused(tmp_path):
    path = zipped(tmp_path / "t.zip", {"a.py": "x = 1\n"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r't\.zip: "a\.py" in it is encrypted; unpack it with its password'):
        load_codebase(path, "t.zip")


def test_too_many_files(tmp_path, monkeypatch):
    path = zipped(tmp_path / "t.zip", {f"{i}.py": "x = 1\n" for i in range(9)})
    monkeypatch.setattr(archive, "MAX_FILES", 8)
    with pytest.raises(InputError, match="more than 8 files in this archive"):
        load_codebase(path, "t.zip")
    lying = bytearray(path.read_bytes())
    struct.pack_into("<H", lying, lying.index(b"PK\5\6") + 10, 1)  # the count of the directory is not believed
    path.write_bytes(lying)
    with pytest.raises(InputError, match="9 files, more than 8"):
        load_codebase(path, "t.zip")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_damaged_archives(share, tmp_path):
    path = zipped(tmp_path / "t.zip", {"a.py": "x = 1\n" * 100})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"t\.zip: not a zip archive or damaged"):
        load_codebase(path, "t.zip")


def test_one_damaged_member_is_listed(tmp_path):
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a.py", "x = 1\n")
        packed.writestr("b.py", "y = 22222\n")
    path.write_bytes(path.read_bytes().replace(b"22222", b"33333"))
    document = load_codebase(path, "t.zip")
    assert [part.label for part in document.parts] == ["a.py"]
    assert document.skipped[0].name == "b.py" and "Bad CRC" in document.skipped[0].reason


def test_nothing_is_written(tmp_path):
    path = zipped(tmp_path / "t.zip", {"a/b/c.py": "x = 1\n"})
    load_codebase(path, "t.zip")
    assert list(tmp_path.rglob("*")) == [path]
    path.unlink()  # it is not held open either


def test_files_beside_the_only_folder_keep_its_name(tmp_path):
    document = load_codebase(zipped(tmp_path / "t.zip", {"src/a.py": "x = 1\n", "b.py": "y = 1\n"}), "t.zip")
    assert [part.label for part in document.parts] == ["b.py", "src/a.py"]
    mac = {"p/a.py": "x = 1\n", "__MACOSX/p/._a.py": b"\0\5"}
    document = load_codebase(zipped(tmp_path / "m.zip", mac), "m.zip")
    assert [part.label for part in document.parts] == ["a.py"]
