"""`bosh-cpi logs VM`: show the agent's and the system's log of a VM, running or not."""

import argparse
import os
import posixpath
import time
from contextlib import ExitStack

from cpi.commands import console, output
from cpi.commands.declare import Command, argument, switch
from cpi.commands.fleet import Fleet
from cpi.commands.vm_names import VM
from cpi.config.config import Config
from cpi.errors import CloudError, NotSupported
from cpi.runtime import Runtime
from cpi.terminal import Streams
from cpi.views import RUNNING, LogPart, LogPlaces, VMView

_EXAMPLES = """\
examples:
  bosh-cpi logs zookeeper/0                      the agent's and the system's log
  bosh-cpi logs cf/router/1f0c --follow          and what comes, until Ctrl-C
  bosh-cpi logs 1f0c… --file gorouter/gorouter.log --lines 500
  bosh-cpi logs 1f0c… --file /var/log/auth.log

Of a container: systemd's journal while it runs, else the files /var/vcap/bosh/log/current,
/var/log/messages and /var/log/syslog. Of a full VM: its console. --file names a file below
/var/vcap/sys/log, which relative paths begin at, or below /var/log or /var/vcap/bosh/log.
"""
_JOBS = "/var/vcap/sys/log"
_ALLOWED = (_JOBS, "/var/log", "/var/vcap/bosh/log", "/var/vcap/data/root_log")
_LINES = 100
_LIMIT = 8 << 20  # bytes read at once; the lines shown are the last of them
_EVERY = 0.5  # seconds; the writer is in other namespaces, and may not have started


def _logs(options: argparse.Namespace, config: Config) -> int:
    wanted = path_of(options.file) if options.file else ""
    with Fleet(config) as fleet:
        vm = fleet.vm(options.vm)
        runtime = fleet.get(vm.runtime)
        try:
            places = LogPlaces((wanted,)) if wanted else runtime.log_places(vm.cid)
        except NotSupported:
            return console.show(runtime, vm.cid, options.lines, follow=options.follow)
        if places.command:
            return _run(runtime, vm, places.command, options)
        _Files(runtime, vm, options.lines).show(places.files, follow=options.follow)
    return 0


def path_of(text: str) -> str:
    """Return the path that --file names. Raises CloudError for one that is not a log."""
    path = posixpath.normpath(posixpath.join(_JOBS, text))
    if "\0" in path or not any(path.startswith(f"{folder}/") for folder in _ALLOWED):
        raise CloudError(f"{text!a} is below none of {', '.join(_ALLOWED[:3])}")
    return path


def _run(
    runtime: Runtime, vm: VMView, command: tuple[str, ...], options: argparse.Namespace
) -> int:
    """Print a VM's log by a command in the VM."""
    words = [*command, f"--lines={max(0, options.lines)}", *(["--follow"] * options.follow)]
    with ExitStack() as stack:
        stack.enter_context(output.Terminal().interruptible())
        nothing = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, nothing)
        return runtime.run_inside(vm.cid, words, Streams(stdin=nothing))


class _Files:
    """Prints log files of a VM, and what is added to them."""

    def __init__(self, runtime: Runtime, vm: VMView, lines: int) -> None:
        self._runtime = runtime
        self._vm = vm
        self._lines = lines
        self._seen: dict[str, LogPart | None] = {}
        self._last = ""  # the file printed from last

    def show(self, paths: tuple[str, ...], *, follow: bool) -> None:
        """Print the end of each file. Raises CloudError when none exists."""
        for path in paths:
            part = self._runtime.read_log(self._vm.cid, path, None, _LIMIT)
            self._seen[path] = part
            if part is not None:
                self._print(
                    path, console.last_lines(part.data, self._lines), several=len(paths) > 1
                )
        if not any(self._seen.values()) and not follow:
            runs = self._vm.state == RUNNING
            raise CloudError(
                f"the VM {self._vm.cid} has {'not ' + ', '.join(paths) if paths else 'no log file'}"
                + ("" if runs else "; it does not run, and a journal in memory ended with it")
            )
        while follow:
            time.sleep(_EVERY)
            for path in paths:
                self._print_new(path, several=len(paths) > 1)

    def _print_new(self, path: str, *, several: bool) -> None:
        part = self._runtime.read_log(self._vm.cid, path, self._seen[path], _LIMIT)
        if part is not None:  # else it is being replaced
            self._seen[path] = part
            self._print(path, part.data, several=several)

    def _print(self, path: str, data: bytes, *, several: bool) -> None:
        if not data:
            return
        if several and path != self._last:
            separator = "\n" if self._last else ""
            data = f"{separator}==> {path} <==\n".encode() + data
            self._last = path
        console.write(data)


COMMANDS = (
    Command(
        "logs",
        _logs,
        "show the logs of a VM",
        VM,
        argument("--lines", type=int, default=_LINES, metavar="N", help="the last N (100)"),
        switch("--follow", "go on as more is written"),
        argument("--file", metavar="PATH", help="this log alone"),
        examples=_EXAMPLES,
    ),
)
