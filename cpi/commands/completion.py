"""`bosh-cpi completion SHELL`: the shell's own completion of this command, by shtab."""

import argparse
from typing import Any

from cpi.commands.declare import add_command
from cpi.config.config import Config

_EXAMPLES = """\
examples:
  bosh-cpi completion bash > /etc/bash_completion.d/bosh-cpi
  bosh-cpi completion zsh > /usr/local/share/zsh/site-functions/_bosh-cpi
  eval "$(bosh-cpi completion bash)"                       for this shell alone
"""
SHELLS = ("bash", "zsh")


def add_to(commands: Any) -> None:
    """Add the command to the command line."""
    arguments = {"shell": {"choices": SHELLS, "help": "the shell that shall complete"}}
    add_command(
        commands, "completion", _print, "print a script for the shell", _EXAMPLES, arguments
    )


def _print(options: argparse.Namespace, config: Config) -> int:
    import shtab

    from cpi.commands.main import parser

    top = parser()
    _complete_files(top, {"FILE": shtab.FILE, "STEMCELL": shtab.FILE, "FOLDER": shtab.DIRECTORY})
    print(shtab.complete(top, shell=options.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, kinds: dict[str, Any]) -> None:
    """Tell shtab which arguments are files, by what they are called in the help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _complete_files(below, kinds)
        elif action.metavar in kinds:
            action.complete = kinds[action.metavar]  # type: ignore[attr-defined]
