"""Commands as data: each module declares its own in COMMANDS, for `main` to add."""

import argparse
from collections.abc import Callable
from typing import Any

from cpi.config.config import Config
from cpi.config.load import load_config

# The names of an argument, and the keyword arguments of argparse's add_argument.
Argument = tuple[tuple[str, ...], dict[str, Any]]


def argument(*names: str, **options: Any) -> Argument:
    """Declare an argument of a command, with the options of argparse's add_argument."""
    return names, options


def switch(name: str, help: str) -> Argument:
    """Declare an option that is on or off."""
    return argument(name, action="store_true", help=help)


JSON = switch("--json", "print JSON")


class Command:
    """`bosh-cpi NAME`. run: returns the exit status; load: reads the configuration file."""

    def __init__(
        self,
        name: str,
        run: Callable[[argparse.Namespace, Config], int],
        summary: str,
        *arguments: Argument,
        examples: str = "",
        load: Callable[[str | None], Config] = load_config,
    ) -> None:
        self.name = name
        self.summary = summary
        self.arguments = arguments
        self.examples = examples
        self.defaults = {"run": run, "load": load}

    def add_to(self, commands: Any, examples: str = "") -> None:
        """Add the command to the command line; `examples` are those of its group."""
        texts = _texts(self.summary, self.examples or examples)
        parser = commands.add_parser(self.name, **texts)
        parser.set_defaults(**self.defaults)
        for names, options in self.arguments:
            parser.add_argument(*names, **options)


class Group:
    """`bosh-cpi NAME COMMAND`: related commands."""

    def __init__(self, name: str, summary: str, *commands: Command, examples: str) -> None:
        self.name = name
        self.summary = summary
        self.commands = commands
        self.examples = examples

    def add_to(self, commands: Any) -> None:
        """Add the group and its commands to the command line."""
        parser = commands.add_parser(self.name, **_texts(self.summary, self.examples))
        subcommands = parser.add_subparsers(metavar="COMMAND", required=True)
        for command in self.commands:
            command.add_to(subcommands, self.examples)


def _texts(summary: str, examples: str) -> dict[str, Any]:
    return {
        "help": summary,
        "description": f"{summary[0].upper()}{summary[1:].rstrip('.')}.",
        "epilog": examples,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
