"""Commands as data: `bosh-cpi NOUN VERB`."""

import argparse
from collections.abc import Callable
from typing import Any

# Of each command: what runs it, what it does, and its arguments as argparse takes them.
Verbs = dict[str, tuple[Callable[..., int], str, dict[str, dict[str, Any]]]]


def add_noun(nouns: Any, name: str, told: str, examples: str, verbs: Verbs) -> None:
    """Add a noun and its verbs to the command line."""
    noun = nouns.add_parser(
        name,
        help=told,
        description=f"{told[0].upper()}{told[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parsers = noun.add_subparsers(metavar="COMMAND", required=True)
    for verb, (run, does, arguments) in verbs.items():
        parser = parsers.add_parser(
            verb,
            help=does,
            description=does,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run)
        for flag, options in arguments.items():
            parser.add_argument(flag, **options)


def switch(told: str) -> dict[str, Any]:
    """An option that is on or off."""
    return {"action": "store_true", "help": told}
