"""The service's metrics, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from cpi.config.config import Config
from cpi.contract.methods import METHODS
from cpi.disks.disk_store import DiskStore, folders_of
from cpi.disks.raw_image import MIB
from cpi.host.layout import Layout
from cpi.service.worker_pool import WorkerPool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)  # seconds
_SUCCESS = "success"
_MAX_CLIENTS = 100  # values of the label; more clients are counted as one
_OTHER_CLIENTS = "other"


class Metrics:
    """All metrics of one service."""

    def __init__(self, config: Config, pool: WorkerPool) -> None:
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "bosh_cpi_calls",
            "Calls that have ended, by outcome: success, or the type of the error.",
            ["method", "client", "outcome"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "bosh_cpi_call_duration_seconds",
            "Duration of calls, with the time they waited for a worker.",
            ["method"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._uploaded = Counter(
            "bosh_cpi_uploaded_bytes", "Bytes of stemcell images received.", registry=self._registry
        )
        self._clients: set[str] = set()
        self._registry.register(_State(config, pool))

    def called(self, method: object, client: str, error: object, seconds: float) -> None:
        """Count a call that has ended; error is that of its response."""
        name = method if isinstance(method, str) and method in METHODS else "unknown"
        outcome = str(error["type"]).rpartition("::")[2] if isinstance(error, dict) else _SUCCESS
        self._calls.labels(name, self._client_label(client), outcome).inc()
        self._seconds.labels(name).observe(seconds)

    def uploaded(self, size: int) -> None:
        """Count received bytes of an image."""
        self._uploaded.inc(size)

    def text(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return bytes(generate_latest(self._registry))

    def _client_label(self, client: str) -> str:
        """Return a client's label, within a limit: each is a time series."""
        if client not in self._clients and len(self._clients) >= _MAX_CLIENTS:
            return _OTHER_CLIENTS
        self._clients.add(client)
        return client


class _State:
    """Metrics that are read from the host when they are scraped."""

    def __init__(self, config: Config, pool: WorkerPool) -> None:
        self._vms = Layout.of(config).vms
        self._disks = DiskStore(folders_of(config))
        self._pool = pool

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield _gauge("calls_running", "Calls that are running.", self._pool.running)
        yield _gauge("calls_waiting", "Calls that are waiting for a worker.", self._pool.waiting)
        yield _gauge("vms", "VMs on this host.", _entries(self._vms))
        disks = list(self._disks.all())
        images = [self._disks.image(disk) for disk in disks]
        allocated = sum(path.stat().st_blocks * 512 for path in images if path.exists())
        yield _gauge("disks", "Persistent disks.", len(disks))
        size = sum(disk.size for disk in disks) * MIB
        yield _gauge("disk_size_bytes", "Total size of persistent disks.", size)
        yield _gauge("disk_allocated_bytes", "Space they take on the host.", allocated)


def _gauge(name: str, text: str, value: int) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"bosh_cpi_{name}", text, value)


def _entries(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
