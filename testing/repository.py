"""Where this checkout is, for what makes things of its files."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
