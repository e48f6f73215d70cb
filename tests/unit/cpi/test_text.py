"""How foreign text is shown."""

import pytest

from cpi.commands import output
from cpi.log import Log
from cpi.text import printable

ESCAPES = "a\x1b]0;title\x07\x9b31mü\u202eb"
SHOWN = r"a\x1b]0;title\x07\x9b31mü\u202eb"


def test_a_terminal_obeys_nothing() -> None:
    assert printable(ESCAPES) == SHOWN
    assert printable("plain ü") == "plain ü"
    assert printable("one\ntwo\tthree") == "one\ntwo\tthree"
    assert printable("one\ntwo", kept="") == r"one\ntwo"


def test_neither_in_tables_nor_facts_nor_logs(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(["NAME"], [[ESCAPES]])
    output.show_facts({"name": ESCAPES, "tags": {ESCAPES: "value"}})
    log = Log()
    log.info(ESCAPES)
    captured = capsys.readouterr()
    for text in (captured.out, captured.err, log.text):
        assert SHOWN in text
        assert "\x1b" not in text
