"""A VM's console: what it prints on its terminal is kept in a bounded log in the VM's folder.

containerd's shim starts the logger with the VM, hands it the output and does not wait for it
(containerd, runtime/v2 README, "Logging", binary://). So the log outlives the CPI's process, and a
restart of containerd. A shell and dd take a tenth of the memory of a Python process.
"""

import re
from pathlib import Path
from urllib.parse import quote

NAME = "console.log"
_OLDER = f"{NAME}.1"
_ENOUGH = 128 << 10  # bytes, after which a new file is begun; a file has 384 KiB at most

# $1: the log. The output comes on descriptor 3; the shim goes on when 5 is closed. dd writes what
# it reads, at once, and ends after 64 reads or, with "0+0 records in", when the VM has ended.
# Programs in the VM would block if their terminal were not read: when the log cannot be written
# (a full disk), the rest is read and dropped. The log stays open (6) until it is complete.
_LOGGER = (
    b"""\
umask 077
cd /
exec 0</dev/null 2>/dev/null 4<&-
if [ -e "$1" ]; then mv -f "$1" "$1.1"; fi
exec 5>&-
filled() {
    while said=$(LC_ALL=C dd bs=4096 count=64 <&3 2>&1 >&6); do
        case $said in "0+0 "*) return 1 ;; esac
        if [ "$(wc -c <"$1")" -ge %d ]; then return 0; fi
    done
    return 1
}
while filled "$1" 6>>"$1"; do mv -f "$1" "$1.1"; done
exec cat <&3 >/dev/null
"""
    % _ENOUGH
)

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)")
_SHOWN_LINES, _SHOWN = 8, 1000  # lines, characters


def logger(folder: Path) -> str:
    """Write the logger into a VM's folder; return the URI by which the shim starts it."""
    script = folder / "console-logger"
    script.write_bytes(_LOGGER)
    return f"binary:///bin/sh?{quote(str(script))}={quote(str(folder / NAME))}"


def read(folder: Path) -> bytes:
    """Return what is kept of a VM's console."""
    # In this order: what is moved meanwhile is then read twice at worst.
    newer, older = _content(folder / NAME), _content(folder / _OLDER)
    return (older + newer).replace(b"\r\n", b"\n")


def last_words(folder: Path) -> str:
    """Return the end of what a VM has printed since its start, in one line, for a message."""
    text = _ESCAPES.sub("", _content(folder / NAME).decode(errors="replace"))
    lines = [line for line in map(_printable, text.splitlines()) if line]
    shown = " | ".join(lines[-_SHOWN_LINES:])
    return shown if len(shown) <= _SHOWN else f"…{shown[-_SHOWN:]}"


def _printable(line: str) -> str:
    return "".join(character for character in line if character.isprintable()).strip()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
