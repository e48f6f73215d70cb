"""The version, without the cost of asking importlib.metadata; a test compares pyproject.toml."""

VERSION = "0.1.0"
