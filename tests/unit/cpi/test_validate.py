"""The checks of documents from outside."""

from typing import Any

import pytest

from cpi import validate
from cpi.errors import CloudError, CPIError

CHECKS: dict[str, Any] = {
    "memory": validate.integer(32, 64, "MiB"),
    "cpu": validate.number(0.5),
    "nested": validate.flag,
}


def refused(check: Any, value: object) -> str:
    with pytest.raises(CloudError) as raised:
        check("it", value, CloudError)
    return raised.value.message


def test_fields_are_what_is_set() -> None:
    assert validate.fields("it", {"memory": 32, "cpu": None}, CHECKS, CloudError) == {"memory": 32}
    with pytest.raises(CloudError, match=r"it\.cpu must be a number, 0\.5 or more, got null"):
        validate.fields("it", {}, CHECKS, CloudError, required=("cpu",))
    with pytest.raises(CloudError, match="it must be an object, got null"):
        validate.fields("it", None, CHECKS, CloudError)


def test_unknown_keys_are_named_with_what_they_look_like() -> None:
    with pytest.raises(CPIError) as raised:
        validate.known_keys("it", {"memry": 1, "cpu": 1, "zone\n": 2}, CHECKS, CPIError)
    assert raised.value.message == (
        "it has unknown keys: 'memry' (did you mean memory?), 'zone\\n'; known: memory, cpu, nested"
    )


def test_messages_about_unknown_keys_stay_short() -> None:
    given = {f"{number:03}{'x' * 10_000}": 1 for number in range(500)}
    known = [f"key-{number}" for number in range(100)]
    with pytest.raises(CPIError) as raised:
        validate.known_keys("it", given, known, CPIError)
    assert len(raised.value.message) < 1000
    assert raised.value.message.endswith(", …")


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (CHECKS["memory"], 31, "it must be a whole number of MiB, 32 to 64, got 31"),
        (CHECKS["memory"], 65, "it must be a whole number of MiB, 32 to 64, got 65"),
        (CHECKS["memory"], 40.0, "it must be a whole number of MiB, 32 to 64, got 40.0"),
        (CHECKS["memory"], True, "it must be a whole number of MiB, 32 to 64, got a boolean"),
        (CHECKS["cpu"], float("nan"), "it must be a number, 0.5 or more, got nan"),
        (CHECKS["cpu"], "1", "it must be a number, 0.5 or more, without quotes, got a string"),
        (validate.flag, 1, "it must be true or false, got 1"),
        (validate.text, ["secret"], "it must be a string, got a list"),
        (validate.mapping, "secret", "it must be an object, got a string"),
        (validate.ip_address, "10.0.0", "it must be an IP address, got '10.0.0'"),
        (validate.ip_address, 5, "it must be a string, got 5"),
        (validate.choice(("ext4", "xfs")), 4, "it must be one of ext4, xfs, got 4"),
        (
            validate.choice(("ext4", "xfs")),
            "ext5",
            "it must be one of ext4, xfs, got 'ext5' (did you mean ext4?)",
        ),
        (validate.matching(str.islower, "a word"), "A", "it must be a word, got 'A'"),
        (validate.matching(str.islower, "a word"), {}, "it must be a word, got an object"),
        (validate.path(), "a", "it must be an absolute path, got 'a'"),
        (validate.path(), "/a\0", "it must be an absolute path, got '/a\\x00'"),
        (validate.path(".."), "/a/../b", "it must be an absolute path without .., got '/a/../b'"),
        (validate.list_of(validate.flag), {}, "it must be a list, got an object"),
        (validate.list_of(validate.flag), [True, 2], "it[1] must be true or false, got 2"),
        (validate.list_of(validate.flag, 1), [True] * 2, "it must be a list of at most 1 items, "),
    ],
)
def test_what_is_wrong_is_named(check: Any, value: object, message: str) -> None:
    assert refused(check, value).startswith(message)


def test_what_is_right_is_returned() -> None:
    cpus = CHECKS["cpu"]("it", 2, CloudError)
    assert (cpus, type(cpus)) == (2.0, float)
    assert validate.path("..")("it", "/a/./b..", CloudError) == "/a/./b.."
    assert validate.list_of(validate.text)("it", ["a"], CloudError) == ("a",)
    assert str(validate.ip_address("it", "0:0::1", CloudError)) == "::1"
