"""README and docs/ name only existing links, commands, targets and messages."""

import argparse
import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from cpi.commands.main import parser
from cpi.config.load import config_of, declared
from cpi.service.policy import Policies
from testing.repository import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
TROUBLES = REPOSITORY / "docs" / "troubleshooting.md"

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(r"\bbosh-cpi((?: +(?:-c|--config) +\S+)?(?: +[a-z][a-z|-]*)+)")
_MAKE = re.compile(r"(?:^|[`;&] *|sudo +)make +([a-z-]+(?: [a-z-]+)*)", re.MULTILINE)


def _id(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def code(page: Path) -> Iterator[str]:
    """Yield a page's code: blocks, and spans outside of them."""
    text = page.read_text()
    yield from _FENCED.findall(text)
    for span in _SPAN.findall(_FENCED.sub("", text)):
        yield f"`{span}"


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def nouns(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the sub-commands of a command."""
    actions = of._actions
    choices_of_actions = [a.choices for a in actions if isinstance(a, argparse._SubParsersAction)]
    return dict(chain.from_iterable(choices.items() for choices in choices_of_actions))


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_are_there(page: Path) -> None:
    known = nouns(parser())
    for text in code(page):
        for words in _COMMAND.findall(text):
            named = re.sub(r"^ +(?:-c|--config) +\S+", "", words).split()
            for noun in named[0].split("|"):
                assert noun in known, f"bosh-cpi {noun}"
            verbs = nouns(known[named[0]])
            if verbs and len(named) > 1:
                assert set(named[1].split("|")) <= set(verbs), f"bosh-cpi {' '.join(named[:2])}"


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_targets_are_there(page: Path) -> None:
    known = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for text in code(page):
        named = {word for words in _MAKE.findall(text) for word in words.split()}
        assert named <= known, named - known


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_files_are_there(page: Path) -> None:
    for path in re.findall(
        r"`((?:bench|cpi|demo|deploy|release|runtimes|stemcell_convert|testing|tests|tools)/[\w./-]+)`",
        page.read_text(),
    ):
        assert (REPOSITORY / path).exists(), path


_TEST = re.compile(r"`([\w/]+/test_\w+\.py)::(test_\w+)(?:\[([^\]`]+)\])?`")


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_tests_are_there(page: Path) -> None:
    for name, function, case in _TEST.findall(page.read_text()):
        path = REPOSITORY / "tests" / name
        assert path.exists(), name
        assert f"def {function}(" in path.read_text(), f"{name}::{function}"
        assert not case or case in texts_of_tests(path), f"{name}::{function}[{case}]"


@cache
def texts_of_tests(path: Path) -> frozenset[str]:
    """Return the texts in a file of tests, and in what tests share."""
    paths = (path, *(REPOSITORY / "tests" / "support").rglob("*.py"))
    nodes = chain.from_iterable(ast.walk(ast.parse(path.read_text())) for path in paths)
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    return frozenset(value for value in constants if isinstance(value, str))


def test_each_line_about_security_names_a_test() -> None:
    rows = 0
    shown = False
    for line in (REPOSITORY / "docs" / "security.md").read_text().splitlines():
        shown = line.startswith("|") and (shown or line.endswith("| shown by |"))
        if shown and not line.startswith("|-") and not line.endswith("| shown by |"):
            assert _TEST.search(line.rsplit("|", 2)[1]), line
            rows += 1
    assert rows > 30


def test_configurations_are_valid() -> None:
    sections = {name.partition(".")[0] for name in declared()}
    checked = 0
    for page in PAGES:
        for block in re.findall(
            r"^```json\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
        ):
            document = json.loads(block)
            if set(document) <= sections:
                Policies.of(config_of(document, page.name))
                checked += 1
    assert checked >= 8


def test_every_page_is_in_the_index() -> None:
    index = REPOSITORY / "docs" / "README.md"
    named = set(_LINK.findall(index.read_text()))
    assert {page.name for page in PAGES if page.parent == index.parent} - {index.name} <= named


@cache
def literals() -> str:
    """Return every text of the code, one a line, with `…` for what is filled in."""
    texts = []
    for folder in ("cpi", "runtimes", "stemcell_convert"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    texts.append("".join(_piece(value) for value in node.values))
    return "\n".join(texts)


def _piece(value: ast.expr) -> str:
    return str(value.value) if isinstance(value, ast.Constant) else "…"


def quoted() -> list[str]:
    """Return the messages in the first column of tables whose heading is "the CPI says"."""
    messages: list[str] = []
    ours = False
    for line in TROUBLES.read_text().splitlines():
        if not line.startswith("|"):
            ours = False
        elif line.startswith("| the CPI says |"):
            ours = True
        elif ours and not line.startswith("|-"):
            messages.append(line.split("|")[1].strip())
    return messages


def test_messages_are_those_of_the_code() -> None:
    assert len(quoted()) > 50
    for cell in quoted():
        assert re.fullmatch(r"`[^`]+`", cell), cell
        parts = [part.strip(" ") for part in cell.strip("`").split("…")]
        telling = [part for part in parts if part]
        assert sum(map(len, telling)) >= 12, f"says too little: {cell}"
        for part in telling:
            assert part in literals(), f"not in the code: {part!r} of {cell}"
