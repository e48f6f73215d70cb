"""The logger of a VM's console, run as containerd's shim runs it, and what is read of its log."""

import fcntl
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from runtimes.containerd import console_log
from testing.patience import PATIENCE, wait_for

KEPT = range(128 << 10, (768 << 10) + 1)  # bytes


@contextmanager
def logger(folder: Path) -> Iterator[int]:
    """Start the logger as the shim does; yield where a VM's output goes, and wait for its end."""
    uri = urlsplit(console_log.logger(folder))
    [arguments] = parse_qsl(uri.query)
    assert uri.scheme == "binary"
    output, writing = os.pipe()
    other = os.open(os.devnull, os.O_RDONLY)
    ready, readying = os.pipe()

    def place() -> None:
        # The copies end with the exec, or the program would keep descriptor 5 open by another.
        given = (output, other, readying)
        copies = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in given]
        for number, copy in enumerate(copies, 3):
            os.dup2(copy, number)

    process = subprocess.Popen([uri.path, *arguments], preexec_fn=place, close_fds=False)
    for descriptor in (output, other, readying):
        os.close(descriptor)
    assert select.select([ready], [], [], PATIENCE)[0], "it closes descriptor 5"
    assert os.read(ready, 1) == b""
    os.close(ready)
    yield writing
    os.close(writing)
    assert process.wait(PATIENCE) == 0


def test_what_is_printed_is_kept_for_root_alone(tmp_path: Path) -> None:
    with logger(tmp_path) as console:
        os.write(console, b"one\r\n\x1b[32mtwo\x1b[0m\r\n")
    assert console_log.read(tmp_path) == b"one\n\x1b[32mtwo\x1b[0m\n"
    assert console_log.last_words(tmp_path) == "one | two"
    assert (tmp_path / "console.log").stat().st_mode & 0o777 == 0o600


def test_the_start_before_is_kept_as_well(tmp_path: Path) -> None:
    for text in (b"first\n", b"second\n", b"third\n"):
        with logger(tmp_path) as console:
            os.write(console, text)
    assert console_log.read(tmp_path) == b"second\nthird\n"
    assert console_log.last_words(tmp_path) == "third"


def test_the_log_is_bounded_and_keeps_the_end(tmp_path: Path) -> None:
    with logger(tmp_path) as console, os.fdopen(os.dup(console), "wb") as file:
        for number in range(100_000):
            file.write(b"line %06d\n" % number)
    kept = console_log.read(tmp_path)
    assert len(kept) in KEPT
    assert kept.endswith(b"line 099998\nline 099999\n")
    numbers = [int(line.split()[1]) for line in kept.splitlines()[1:]]
    assert numbers == list(range(numbers[0], 100_000)), "nothing is missing in between"
    assert sum(path.stat().st_size for path in tmp_path.glob("console.log*")) in KEPT


def test_many_short_lines_are_kept_as_they_come(tmp_path: Path) -> None:
    lines = [b"line %04d\n" % number for number in range(500)]
    with logger(tmp_path) as console:
        for line in lines:
            os.write(console, line)
            wait_for(lambda: console_log.read(tmp_path).endswith(line), "the line")  # noqa: B023
    assert console_log.read(tmp_path) == b"".join(lines)


def test_a_vm_never_waits_for_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "vm"
    folder.mkdir()
    with logger(folder) as console:
        shutil.rmtree(folder)
        for _ in range(100):
            assert os.write(console, b"x" * 65536) == 65536
    assert not folder.exists()


def test_nothing_is_kept_of_a_vm_that_has_no_log(tmp_path: Path) -> None:
    assert console_log.read(tmp_path) == b""
    assert console_log.last_words(tmp_path) == ""


def test_last_words_are_short_and_printable(tmp_path: Path) -> None:
    lines = [b"line %d \x07\xff" % number for number in range(100)]
    (tmp_path / "console.log").write_bytes(b"\r\n".join(lines))
    words = console_log.last_words(tmp_path)
    assert words.startswith("line 92")
    assert words.isprintable()
    (tmp_path / "console.log").write_bytes(b"x" * 5000)
    assert len(console_log.last_words(tmp_path)) <= 1001
