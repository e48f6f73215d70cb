"""Golden files: expected documents in tests/golden."""

import json
import os

from testing.repository import REPOSITORY


def matches_golden(name: str, rendered: object) -> bool:
    """Return whether a rendering equals the golden file; UPDATE_GOLDEN=1 updates the file."""
    golden = REPOSITORY / "tests" / "golden" / f"{name}.json"
    text = json.dumps(rendered, indent=2) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    return golden.read_text() == text
