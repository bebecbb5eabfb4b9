"""Parses command lines and ends commands, for every `python -m engine.X` and the console script `kiln`.

Exit status: 0 for success; 2 for wrong usage or input, with one line on standard error; 128 + N for an end by signal N,
130 for Ctrl-C; 1 for anything else, which is a bug and keeps its traceback.
"""

import contextlib
import difflib
import errno
import importlib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from engine.distributed import torchrun
from engine.errors import InputError, LostRank, SharedError, gpu_failure
from engine.host.environment import variable
from engine.host.stop_signals import ending_in_order
from engine.host.terminal import escaped_output, occupy_descriptors, plain
from engine.version import __version__

Config = TypeVar("Config")
Main = Callable[[list[str]], int | None]

# command -> (module with a main(argv), what the command does)
COMMANDS = {
    "train": ("engine.train", "train a system on a folder of images"),
    "refine": ("engine.refine", "refine images with a trained model"),
    "crop": ("engine.crop", "crop faces, framed as in other photos"),
    "sample": ("engine.sample", "make new images with a trained generator"),
    "reenact": ("engine.reenact", "move a face with the landmarks of another clip"),
    "evaluate": ("engine.evaluate", "measure a trained model on a folder of images"),
    "ablate": ("engine.ablate", "train and compare the variants that a paper compares"),
    "models": ("engine.models", "list the trained models that come with Kiln"),
    "export": ("engine.export", "write a trained generator as a folder to publish"),
    "report": ("engine.report", "write the report.html of a run again"),
    "verify": ("engine.verify", "check every operator and some training steps against the reference"),
    "doctor": ("engine.doctor", "show the environment, which implementation runs where, and what to fix"),
    "data": ("engine.data.__main__", "check a data set, or write the embedded one as files"),
}

_DISK = "check the disk or the network, or choose another place; what was whole before still is"
# errno -> (what is wrong with the place that was read or written, how to fix it)
_PLACE_ERRORS = {
    errno.ENOSPC: ("no space left on the device", "free some space or write elsewhere"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or write elsewhere"),
    errno.EFBIG: ("too large for this file system or limit", "write elsewhere, or give a smaller file"),
    errno.EROFS: ("the file system is read-only", "write elsewhere"),
    errno.EACCES: ("permission denied", "check the rights of this path or choose another one"),
    errno.EPERM: ("operation not permitted", "check the rights of this path or choose another one"),
    errno.ENOENT: ("no such file or folder", "check the path; another program may have removed it"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "choose another path"),
    errno.EEXIST: ("a file of this name is in the way", "choose another path"),
    errno.ENOTEMPTY: ("this folder is not empty", "choose another path"),
    errno.EISDIR: ("this is a folder, not a file", "choose another path"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ELOOP: ("too many links lead to each other", "check the links, or choose another path"),
    errno.EXDEV: ("this is a mount of its own", "name a folder inside it"),
    errno.EBUSY: ("this is in use, as the place of a mount is", "name a folder inside it"),
    errno.ETXTBSY: ("another program uses this file", "end that program, or choose another path"),
    errno.EMFILE: ("too many open files in this process", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("too many open files on this machine", "close other programs"),
    errno.ENOMEM: ("out of memory", "close other programs, or lower --batch-size, --filters or --resolution"),
    errno.ENOTSUP: ("the file system cannot do this", "choose another place"),
    errno.EOPNOTSUPP: ("the file system cannot do this", "choose another place"),
    **dict.fromkeys((errno.EIO, errno.ENXIO, errno.ENODEV), ("input/output error", _DISK)),
    **dict.fromkeys((errno.ESTALE, errno.ETIMEDOUT, errno.ENOLCK), ("the network disk does not answer", _DISK)),
    **dict.fromkeys((errno.EHOSTDOWN, errno.ENOTCONN), ("the network disk does not answer", _DISK)),
}
if sys.platform == "linux":
    _PLACE_ERRORS |= {
        errno.EREMOTEIO: ("input/output error", _DISK),
        errno.EUCLEAN: ("the file system is damaged", _DISK),
    }
# libraries that raise no OSError name the error in their messages: Rust's by its number, others by words
_PLACE_NUMBER = re.compile(r"\(os error (\d+)\)")
_PLACE_WORDS = {os.strerror(n): n for n in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)}
_PLACE_WORDS |= dict.fromkeys(
    ("PytorchStreamWriter failed writing", "iostream error", "encoder error -2 when writing image file"), errno.EIO
)
_MEMORY_TEXTS = ("CUDA out of memory", "DefaultCPUAllocator: can't allocate memory")


def parse(config: type[Config], argv: Sequence[str], *, prog: str, description: str = "", **options: Any) -> Config:
    """Parse `argv` into the dataclass `config` with tyro.

    prog:    shown in the help, for example "kiln refine".
    options: passed on to `tyro.cli`.
    Raises InputError with tyro's message and did-you-mean hint in one line; `--help` prints and exits with status 0.
    """
    import tyro

    complaint = io.StringIO()
    with contextlib.ExitStack() as stack:
        if {"-h", "--help"} & set(argv):
            stack.enter_context(contextlib.redirect_stdout(plain(sys.stdout)))
        else:
            # on a page this wide tyro does not break a sentence over two lines
            stack.enter_context(variable("COLUMNS", "10000"))
            stack.enter_context(contextlib.redirect_stderr(complaint))
        try:
            return tyro.cli(config, prog=prog, description=description or None, args=list(argv), **options)
        except SystemExit as stop:
            if stop.code in (0, None):
                raise
    raise InputError(condense(complaint.getvalue()) + f" (see {prog} --help)")


def condense(boxed: str) -> str:
    """Turn tyro's boxed error into one line: its first paragraph, then the options that tyro suggests."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    paragraphs: list[list[str]] = [[]]
    lines = [line for line in plain.splitlines() if line.strip()]
    if "╭" not in plain:
        # on a terminal without line-drawing characters tyro prints the title and a rule instead of a frame
        lines = lines[2:]
    for line in lines:
        if line.startswith(("╭", "╰")):
            continue
        line = line.strip().strip("│|").rstrip()
        if line and not line.strip("─- "):
            paragraphs.append([])
        elif line:
            paragraphs[-1].append(line)
    if paragraphs[0] and paragraphs[0][0].strip().startswith("Missing from"):
        return "missing " + ", ".join(_outermost(paragraphs[0][1:]))
    paragraphs = [[line.strip() for line in paragraph] for paragraph in paragraphs]
    first = " ".join(paragraphs[0]) or "wrong usage"
    suggestions = []
    for paragraph in paragraphs[1:]:
        if paragraph and re.match(r"Perhaps you meant|Arguments similar|Similar arguments", paragraph[0]):
            flags = [match.group() for line in paragraph[1:] if (match := re.match(r"--[\w.-]+", line))]
            suggestions += flags[:1]
    first = re.sub(r"^Unrecognized options?: (.*)", _unknown, first)
    first = re.sub(r"^Error parsing (\S+): ", r"\1: ", first)
    first = re.sub(r"invalid literal for int\(\) with base 10: ('.*')", r"expected a whole number, got \1", first)
    first = re.sub(r"could not convert string to float: ('.*')", r"expected a number, got \1", first)
    first = re.sub(r"Could not find valid parse for arguments: \[(.*)\]", r"cannot use \1 here", first)
    # tyro before 1.0.14 writes ('--steps',) for --steps
    first = re.sub(r"\('(-[^)]*)',?\)", lambda names: names[1].replace("', '", "/"), first)
    first = re.sub(r"\. Expected 1 values\.?", "", first)
    first = re.sub(r"\. Expected one of \((.*)\)", r"; expected one of \1", first)
    first = (first[:1].lower() + first[1:]).rstrip(".")
    if suggestions:
        first += f"; did you mean {' or '.join(dict.fromkeys(suggestions))}?"
    return first


def _outermost(lines: list[str]) -> list[str]:
    """The least indented lines, which name the arguments; the lines below an argument say what it is for."""
    least = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    return [line.strip() for line in lines if len(line) - len(line.lstrip()) == least]


def _unknown(match: re.Match) -> str:
    """Name only the misspelt options, not the values that follow them."""
    words = match.group(1).split(", ")
    options = [word for word in words if word.startswith("-")] or words
    return f"unknown argument {', '.join(options)}"


def run(command: str, main: Main, argv: Sequence[str] | None = None) -> NoReturn:
    """Run `main(argv)` and exit with its status; a mistake of the user becomes one line on standard error."""
    occupy_descriptors()
    with ending_in_order(), escaped_output():
        try:
            status = status_of(command, main, sys.argv[1:] if argv is None else argv)
        except Exception:
            traceback.print_exc()  # here, for the text of an error may hold a file's name too
            status = 1
        sys.exit(status)


@escaped_output()
def status_of(command: str, main: Main, argv: Sequence[str]) -> int:
    """Run `main(argv)` and return its exit status; prints one line for a failure that the user can fix.

    What it prints is shown escaped. Raises every other exception: it is a bug.
    """
    name = f"kiln {command}" if command else "kiln"
    try:
        status = main(list(argv)) or 0
        sys.stdout.flush()
        return status
    except InputError as error:
        # every rank raises a SharedError, and only rank 0 prints it
        return 2 if isinstance(error, SharedError) and torchrun.rank() else _complain(name, str(error))
    except LostRank as error:
        return 1 if torchrun.rank() else _complain(name, str(error), 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the program that reads our output closed the pipe; with the old stdout the interpreter would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message = _fixable(error)
        if message is None:
            raise
        return _complain(name, message)


def _fixable(error: Exception) -> str | None:
    """One line for a failure that the user can fix (disk, rights, memory, missing build); None for any other."""
    if place := _place_error(error):
        return place
    text = str(error)
    # engine.kernels raises these two where an operator cannot run; their text says what to do
    if type(error).__name__ == "NativeMissing" or (
        isinstance(error, NotImplementedError) and text.startswith("kiln::")
    ):
        return text
    if failure := gpu_failure(error):
        return failure
    if isinstance(error, MemoryError) or any(phrase in text for phrase in _MEMORY_TEXTS):
        return "out of memory; lower --batch-size, --filters or --resolution"
    return None


def _place_error(error: Exception) -> str | None:
    """One line for what a disk, its rights or its network refuse; None for any other error."""
    text, number = str(error), getattr(error, "errno", None)
    if not isinstance(error, OSError) or number is None:
        match = _PLACE_NUMBER.search(text)
        words = next((words for words in _PLACE_WORDS if words in text), "")
        number = int(match[1]) if match else _PLACE_WORDS.get(words)
    if number not in _PLACE_ERRORS:
        return None
    problem, fix = _PLACE_ERRORS[number]
    where = f"{name}: " if (name := getattr(error, "filename", None)) else ""
    return f"{where}{problem}; {fix}"


def _complain(name: str, message: str, status: int = 2) -> int:
    """Print one line on standard error, and return the exit status."""
    sys.stdout.flush()
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status


def usage() -> str:
    """The help of `kiln`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items())
    return (
        f"usage: kiln COMMAND [OPTIONS]\n\nKiln {__version__}: trains face-image GANs with fused kernels.\n\n"
        f"commands:\n{commands}\n\n"
        "`kiln COMMAND --help` shows the options of a command; `python -m engine.COMMAND` is the same command.\n"
    )


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the console script `kiln`: find the command and run its main with the rest of the words."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        run(argv[0], lambda rest: importlib.import_module(COMMANDS[argv[0]][0]).main(rest), argv[1:])
    run("", _without_command, argv)


def _without_command(argv: list[str]) -> None:
    """Print the help or the version. Raises InputError for any other word."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
    elif argv[0] in ("-V", "--version"):
        print(f"kiln {__version__}")
    else:
        close = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
        raise InputError(f"unknown command {argv[0]!r}; {hint}")


if __name__ == "__main__":
    main()
