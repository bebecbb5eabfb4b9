"""Files that people bring: regular ones alone, so many bytes at most, never waited for."""

import os
import socket
from pathlib import Path

import pytest

from engine.host.input_files import UnreadableFile, check_input, open_input, read_input, read_start
from tests.support.data_images import LFS_POINTER


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.open(path.parent, os.O_RDONLY)
        one.bind(f"/proc/self/fd/{here}/{path.name}")  # the path itself may be too long for a socket
        os.close(here)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "a folder, not a file"),
        (pipe, "a named pipe, not a file"),
        (unix_socket, "a socket or a device, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
        (lambda path: path.symlink_to("/proc/self/maps"), "it holds more than the 0 bytes that it claims"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file or directory"),
        (lambda path: None, "cannot be read: No such file or directory"),
        (lambda path: path.write_bytes(LFS_POINTER), "a Git LFS pointer .*: run `git lfs pull`"),
        (lambda path: path.write_bytes(bytes(1001)), r"too large \(0 MB; Kiln reads up to 0 MB"),
    ],
)
def test_what_is_not_read(tmp_path: Path, make, reason: str) -> None:
    make(tmp_path / "x.png")
    with pytest.raises(UnreadableFile, match=reason):
        read_input(tmp_path / "x.png", limit=1000)


def test_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff\n\x1b.png")
    for content in (b"", b"x", bytes(1000)):
        file.write_bytes(content)
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(file)
        assert read_input(file, limit=1000) == read_input(tmp_path / "link", limit=1000) == content
        assert read_start(file, 7) == content[:7]
        check_input(file)
        with open_input(file) as opened:
            assert opened.read() == content
    with pytest.raises(UnreadableFile, match="cannot be read"):
        read_input(Path("a\0b"))
