"""Placeholder."""

from cpi.config import Config


class Policies:
    @classmethod
    def of(cls, config: Config) -> "Policies":
        return cls()
