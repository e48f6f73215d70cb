"""Configurations that use the fake runtime (fake_runtime.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpi.config.config import Config
from cpi.config.load import config_of
from runtimes import catalog

FAKE = catalog.Entry(
    "fake", "tests.support.fake_runtime:FakeRuntime", ("fake-tar",), "", "the tests bring it along"
)


@contextmanager
def fake_registered() -> Iterator[None]:
    """Register the fake runtime."""
    catalog.REGISTRY["fake"] = FAKE
    try:
        yield
    finally:
        del catalog.REGISTRY["fake"]


def fake_config(folder: Path, **more: object) -> Config:
    """Return a configuration of the fake runtime, with a separate world for each folder."""
    folders = {"state_dir": str(folder / "state"), "run_dir": str(folder / "run")}
    agent = {"mbus": "nats://127.0.0.1:4222"}
    return config_of({"runtime": "fake", "agent": agent, **folders, **more})
