"""Commands as data: `bosh-cpi NOUN VERB`."""

import argparse
from collections.abc import Callable
from typing import Any

# Of each command: what runs it, what it does, and its arguments as argparse takes them.
Verbs = dict[str, tuple[Callable[..., int], str, dict[str, dict[str, Any]]]]


def add_noun(nouns: Any, name: str, told: str, examples: str, verbs: Verbs) -> None:
    """Add a noun and its verbs to the command line."""
    noun = nouns.add_parser(name, help=told, **_texts(told, examples))
    parsers = noun.add_subparsers(metavar="COMMAND", required=True)
    for verb, (run, does, arguments) in verbs.items():
        add_command(parsers, verb, run, does, examples, arguments)


def add_command(
    commands: Any,
    name: str,
    run: Callable[..., int],
    does: str,
    examples: str,
    arguments: dict[str, dict[str, Any]],
) -> Any:
    """Add one command to the command line; return its parser."""
    parser = commands.add_parser(name, help=does, **_texts(does, examples))
    parser.set_defaults(run=run)
    for flag, options in arguments.items():
        parser.add_argument(flag, **options)
    return parser


def _texts(told: str, examples: str) -> dict[str, Any]:
    return {
        "description": f"{told[0].upper()}{told[1:]}{'' if told.endswith('.') else '.'}",
        "epilog": examples,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def switch(told: str) -> dict[str, Any]:
    """An option that is on or off."""
    return {"action": "store_true", "help": told}
