"""Placeholder."""

from pathlib import Path

from cpi.config import Config


class Guard:
    def __init__(self, client: str, config: Config, upload: Path | None) -> None: ...
