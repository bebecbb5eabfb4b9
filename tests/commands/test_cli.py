"""Commands exit with the right status, and tell a mistake of the user in one line."""

import errno
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from engine import __version__, cli
from engine.errors import InputError
from tests.support.places import ROOT


@dataclass
class Options:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Where from, in a sentence that is longer than most terminals are wide, so that it would be broken in two."""
    steps: int = 10
    """How many."""
    device: Literal["cpu", "cuda"] = "cpu"
    rate: float = 0.1
    batch_size: int = 4


def parse(*words: str) -> Options:
    return cli.parse(Options, words, prog="kiln test")


def test_parse_gives_the_values_and_takes_both_spellings():
    assert parse("here", "--steps", "3", "--batch-size=5") == Options(Path("here"), steps=3, batch_size=5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing SOURCE"),
        (["x", "--stps", "3"], "unknown argument --stps; did you mean --steps?"),
        (["x", "--steps", "many"], "--steps: expected a whole number, got 'many'"),
        (["x", "--rate", "fast"], "--rate: expected a number, got 'fast'"),
        (["x", "--device", "tpu"], "invalid choice 'tpu' for argument '--device'; expected one of 'cpu', 'cuda'"),
        (["x", "--steps"], "missing value for argument '--steps'"),
        (["x", "y"], "unknown argument y"),
    ],
)
def test_a_usage_error_is_one_line_that_names_the_mistake(words, message):
    with pytest.raises(InputError) as error:
        parse(*words)
    assert str(error.value) == f"{message} (see kiln test --help)"


def test_terminals_without_line_drawing_get_the_same_line(monkeypatch):
    monkeypatch.setattr("tyro._fmtlib._should_use_utf8_drawing_chars", lambda: False)
    with pytest.raises(InputError, match="missing SOURCE"):
        parse()
    with pytest.raises(InputError, match="unknown argument --stps; did you mean --steps"):
        parse("x", "--stps", "3")


def test_help_is_printed_and_status_0(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code in (0, None)
    assert "--batch-size" in capsys.readouterr().out


def test_parsing_leaves_the_environment_alone(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    parse("x")
    assert "COLUMNS" not in os.environ
    monkeypatch.setenv("COLUMNS", "70")
    parse("x")
    assert os.environ["COLUMNS"] == "70"


def outcome(error: BaseException, capsys) -> tuple[int, str]:
    def main(argv):
        raise error

    return cli.status_of("test", main, []), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (InputError("no images in x;\n give others"), ["no images in x; give others"]),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), ["/a/b", "no space left", "write elsewhere"]),
        (OSError(errno.EROFS, "Read-only file system", "/a"), ["/a", "read-only"]),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), ["/a", "permission denied"]),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), ["/a/b", "is a file, not a folder"]),
        (RuntimeError("I/O error: No space left on device (os error 28)"), ["no space left"]),
        (OSError(errno.EIO, "Input/output error", "/a/b"), ["/a/b: input/output error", "check the disk"]),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/a/b"), ["/a/b: the disk quota", "free some space"]),
        (OSError(errno.ESTALE, "Stale file handle", "/a/b"), ["/a/b: the network disk", "check the disk"]),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out", "/a/b"), ["/a/b: the network disk"]),
        (OSError(errno.EMFILE, "Too many open files", "/a/b"), ["too many open files", "ulimit -n"]),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ["out of memory"]),
        (OSError(errno.EBUSY, "Device or resource busy", "/a"), ["/a: this is in use", "inside it"]),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"), ["/a: no such file"]),
        (RuntimeError("I/O error: Input/output error (os error 5)"), ["input/output error"]),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), ["input/output error"]),
        (OSError("encoder error -2 when writing image file"), ["input/output error"]),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ["out of memory", "--batch-size"]),
        (MemoryError(), ["out of memory"]),
        (NotImplementedError("kiln::op has no CUDA kernel yet: use --eager"), ["kiln::op", "--eager"]),
    ],
)
def test_what_the_user_can_fix_is_one_line_and_status_2(error, parts, capsys):
    status, printed = outcome(error, capsys)
    assert status == 2
    assert printed.startswith("kiln test: error: ") and printed.count("\n") == 1
    assert all(part in printed for part in parts)


@pytest.mark.parametrize(
    "error", [KeyError("bug"), OSError(errno.EINVAL, "Invalid argument"), NotImplementedError("bug")]
)
def test_a_bug_keeps_its_traceback(error, capsys):
    with pytest.raises(type(error)):
        outcome(error, capsys)


def test_interrupt_is_130_and_quiet(capsys):
    assert outcome(KeyboardInterrupt(), capsys) == (130, "")


def test_a_status_comes_through_and_none_is_0():
    assert cli.status_of("test", lambda argv: 1, []) == 1
    assert cli.status_of("test", lambda argv: None, []) == 0


def kiln(*words: str, module: str = "engine.cli", **options) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", module, *words]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, **options)


def test_console_script(capsys):
    for words, status, out, err in [
        ([], 0, "commands:", ""),
        (["--version"], 0, f"kiln {__version__}", ""),
        (["refnie"], 2, "", "kiln: error: unknown command 'refnie'; did you mean refine?\n"),
        (["zzz"], 2, "", "kiln: error: unknown command 'zzz'; the commands are train, "),
    ]:
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        printed = capsys.readouterr()
        assert stop.value.code == status
        assert out in printed.out and printed.err.startswith(err)


def test_every_command_has_a_main():
    import importlib

    for name, (module, _) in cli.COMMANDS.items():
        assert callable(importlib.import_module(module).main), name


def test_module_and_console_script_are_the_same_command():
    as_module, as_command = kiln("--stps", "3", module="engine.train"), kiln("train", "--stps", "3")
    assert as_module.returncode == as_command.returncode == 2
    assert as_module.stderr == as_command.stderr
    assert as_module.stderr.startswith("kiln train: error: unknown argument --stps; did you mean --steps?")
    assert as_module.stdout == ""


def test_a_reader_that_leaves_is_no_error():
    code = "from engine.cli import run\ndef main(argv):\n    for i in range(100000): print(i)\nrun('test', main, [])"
    line = f'{sys.executable} -c "{code}" | head -1'
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n" and done.stderr == ""


@pytest.mark.parametrize("words", ["--help", "--version", "train --help"])
def test_a_full_disk_gets_no_help(words):
    done = subprocess.run(
        f"{sys.executable} -m engine.cli {words} > /dev/full", shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no space left on the device" in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_started_without_standard_streams(closed, tmp_path):
    """As some schedulers do: no traceback, and the next file that is opened does not get what libraries print."""
    code = f"""
import os
from engine.cli import run
def main(argv):
    print("printed")
    with open({str(tmp_path / "file")!r}, "w") as file:
        assert file.fileno() > 2
        os.write(1, b"by a library")
    return 7
run("test", main, [])
"""
    line = f"{sys.executable} -c {shlex.quote(code)} {closed}"
    done = subprocess.run(line, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 7 and (tmp_path / "file").read_bytes() == b"", done.stderr


NAME = "\x1b]0;title\x07\x1b[31m\u202e\udcff.png"


@pytest.mark.parametrize("error", [InputError(f"{NAME}: damaged"), OSError(errno.ENOSPC, "full", NAME)])
def test_a_name_in_an_error_does_not_steer_the_terminal(error, capsys):
    status, printed = outcome(error, capsys)
    assert status == 2 and r"\x1b]0;title\x07\x1b[31m\u202e\udcff.png" in printed and printed.strip().isprintable()


def test_what_a_command_prints_does_not_steer_the_terminal(capfd):
    code = f"name = {NAME!r}\nfrom engine.cli import run\nimport sys, warnings\ndef main(argv):\n    print(name)\n"
    code += "    print(name, file=sys.stderr)\n    warnings.warn(name)\n    raise KeyError(name)\nrun('test', main, [])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 1 and b"Traceback" in done.stderr and b"KeyError" in done.stderr
    assert not {0x1B, 0x07, 0xFF} & {*done.stdout, *done.stderr} and done.stdout.count(rb"\x1b]0;title\x07") == 1


def test_a_help_page_is_left_as_it_is(capsys):
    def main(argv):
        parse("--help")

    with pytest.raises(SystemExit):
        cli.status_of("test", main, [])
    with_cli = capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse("--help")
    assert with_cli == capsys.readouterr().out
