"""Checks of documents that come from outside, with the same wording for all errors.

A check takes `where` (what the value is, for the message), the value and the class of error to
raise; it returns the value as the caller keeps it. Functions named after what they take build one.
A value of the wrong type is shown only when it is a number: a string could be a secret.
"""

from __future__ import annotations

from cpi.text import shown, type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from ipaddress import IPv4Address, IPv6Address
    from typing import Any, TypeVar

    from cpi.errors import CPIError

    Checked = TypeVar("Checked")
    Error = TypeVar("Error", bound=CPIError)
    Check = Callable[[str, object, type[CPIError]], Checked]

_MAX_NAMED = 10  # unknown keys in one message
_MAX_LISTED = 20  # known keys in one message
_MAX_PATH = 4096  # characters; PATH_MAX


def wrong(where: str, wanted: str, value: object, error: type[Error]) -> Error:
    """Return the error for a value of the wrong type or size."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return error(f"{where} must be {wanted}, got {str(value)[:30] if number else type_name(value)}")


def known_keys(
    where: str, given: Mapping[str, object], known: Collection[str], error: type[CPIError]
) -> Mapping[str, object]:
    """Return a document's known keys with their values. Raises `error` naming unknown ones."""
    unknown = [key for key in given if key not in known]
    if unknown:
        names = ", ".join(suggestion(key, known) for key in unknown[:_MAX_NAMED])
        more = ", …" * (len(unknown) > _MAX_NAMED)
        listed = f"; known: {', '.join(known)}" if len(known) <= _MAX_LISTED else ""
        raise error(f"{where} has unknown keys: {names}{more}{listed}")
    return given


def suggestion(name: str, known: Collection[str]) -> str:
    """Return an unknown name for a message, with the known one that it resembles."""
    close = lookalike(name, known) or _closest(name, known, 0.6)
    return shown(name, 60) + (f" (did you mean {close}?)" if close else "")


def lookalike(name: str, known: Collection[str]) -> str:
    """Return the known name that an unknown one is most likely a typo of; "" if there is none.

    Other case, hyphens for underscores, letters in another order, or some wrong letters.
    """
    plain = _plain(name[:100])
    for candidate in known:
        if plain == _plain(candidate) or sorted(plain) == sorted(_plain(candidate)):
            return candidate
    return _closest(name, known, 0.8)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _closest(name: str, known: Collection[str], cutoff: float) -> str:
    import difflib  # loaded for a mistake only

    close = difflib.get_close_matches(name[:100], list(known), 1, cutoff)
    return close[0] if close else ""


def fields(
    where: str,
    value: object,
    checks: Mapping[str, Check[Any]],
    error: type[CPIError],
    required: Collection[str] = (),
) -> dict[str, Any]:
    """Check an object by the checks of its keys; return what is set.

    null counts as not set, since templates render it for properties without a value.
    """
    given = known_keys(where, mapping(where, value, error), checks, error)
    return {
        key: check(f"{where}.{key}", given.get(key), error)
        for key, check in checks.items()
        if given.get(key) is not None or key in required
    }


def _instance(type_: type[Any], wanted: str) -> Check[Any]:
    def check(where: str, value: object, error: type[CPIError]) -> Any:
        if not isinstance(value, type_):
            raise wrong(where, wanted, value, error)
        return value

    return check


mapping: Check[Mapping[str, object]] = _instance(dict, "an object")
flag: Check[bool] = _instance(bool, "true or false")
text: Check[str] = _instance(str, "a string")


def ip_address(where: str, value: object, error: type[CPIError]) -> IPv4Address | IPv6Address:
    """Check an IP address of either family; return it as an object of `ipaddress`."""
    import ipaddress

    written = text(where, value, error)
    try:
        return ipaddress.ip_address(written)
    except ValueError:
        raise error(f"{where} must be an IP address, got {shown(written, 60)}") from None


def integer(minimum: int, maximum: int | None = None, unit: str = "") -> Check[int]:
    """Return a check for a whole number from `minimum` to `maximum`."""
    return _in_range(int, "whole number", minimum, maximum, unit)


def number(minimum: float, maximum: float | None = None, unit: str = "") -> Check[float]:
    """Return a check for a number from `minimum` to `maximum`, whole or not."""
    return _in_range(float, "number", minimum, maximum, unit)


def _in_range(
    type_: Callable[[Any], Checked], what: str, minimum: float, maximum: float | None, unit: str
) -> Check[Checked]:
    limits = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
    wanted = f"a {what}{' of ' * bool(unit)}{unit}, {limits}"
    largest = float("inf") if maximum is None else maximum

    def check(where: str, value: object, error: type[CPIError]) -> Checked:
        if type(value) in (int, type_) and minimum <= value <= largest:  # type: ignore[operator]
            return type_(value)
        # A template that puts numbers in quotes hides mistakes, so strings are refused.
        quotes = ", without quotes" * isinstance(value, str)
        raise wrong(where, wanted + quotes, value, error)

    return check


def choice(known: Collection[str]) -> Check[str]:
    """Return a check for one of some words."""

    def check(where: str, value: object, error: type[CPIError]) -> str:
        wanted = f"one of {', '.join(known)}"
        if not isinstance(value, str):
            raise wrong(where, wanted, value, error)
        if value not in known:
            raise error(f"{where} must be {wanted}, got {suggestion(value, known)}")
        return value

    return check


def matching(accepts: Callable[[str], object], wanted: str) -> Check[str]:
    """Return a check for a string that `accepts`, such as a pattern's fullmatch, takes."""

    def check(where: str, value: object, error: type[CPIError]) -> str:
        if not isinstance(value, str):
            raise wrong(where, wanted, value, error)
        if not accepts(value):
            raise error(f"{where} must be {wanted}, got {shown(value, 60)}")
        return value

    return check


def path(*without: str, max_length: int = _MAX_PATH) -> Check[str]:
    """Return a check for an absolute path without some parts; "" is a doubled or trailing /."""
    limit = f" of at most {max_length} printable characters" * (max_length != _MAX_PATH)
    parts = " or ".join(part or "// or a / at its end" for part in without)
    wanted = f"an absolute path{limit}{' without ' * bool(parts)}{parts}"
    return matching(lambda written: is_path(written, *without, max_length=max_length), wanted)


def is_path(written: str, *without: str, max_length: int = _MAX_PATH) -> bool:
    """Tell whether a string is such a path."""
    absolute = written.startswith("/") and written.isprintable() and len(written) <= max_length
    return absolute and not set(without) & set(written[1:].split("/"))


def list_of(check: Check[Checked], maximum: int | None = None) -> Check[tuple[Checked, ...]]:
    """Return a check for a list whose items all pass `check`."""

    def check_all(where: str, value: object, error: type[CPIError]) -> tuple[Checked, ...]:
        if not isinstance(value, list):
            raise wrong(where, "a list", value, error)
        if maximum is not None and len(value) > maximum:
            raise wrong(where, f"a list of at most {maximum} items", len(value), error)
        return tuple(check(f"{where}[{index}]", item, error) for index, item in enumerate(value))

    return check_all
