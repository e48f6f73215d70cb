"""The figures of the service."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cpi.disks.disk import Disk
from cpi.disks.disk_store import DiskStore, folders_of
from cpi.service import metrics
from cpi.service.metrics import Metrics
from cpi.service.worker_pool import WorkerPool
from tests.support.fake_config import fake_config

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def figures(tmp_path: Path) -> Metrics:
    return Metrics(fake_config(tmp_path), WorkerPool(None, 1))


def samples(figures: Metrics) -> Samples:
    families = text_string_to_metric_families(figures.text().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def calls(figures: Metrics) -> dict[tuple[str, ...], float]:
    """Return how many calls there were, by client, method and outcome."""
    return {
        tuple(value for _, value in labels): value
        for (name, labels), value in samples(figures).items()
        if name == "bosh_cpi_calls_total"
    }


def test_calls_are_counted_by_client_method_and_outcome(figures: Metrics) -> None:
    figures.called("has_vm", "local", None, 0.5)
    figures.called("has_vm", "local", None, 0.5)
    figures.called("delete_vm", "guest", {"type": "Bosh::Clouds::VMNotFound"}, 0.5)
    figures.called("rm -rf", "guest", {"type": "InvalidCall"}, 0.5)
    assert calls(figures) == {
        ("local", "has_vm", "success"): 2,
        ("guest", "delete_vm", "VMNotFound"): 1,
        ("guest", "unknown", "InvalidCall"): 1,
    }
    count = samples(figures)["bosh_cpi_call_duration_seconds_sum", (("method", "has_vm"),)]
    assert count == 1.0


def test_clients_have_a_bounded_number_of_series(
    figures: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_MAX_CLIENTS", 2)
    for client in ("a", "b", "c", "d", "a"):
        figures.called("has_vm", client, None, 0.1)
    counted = {client: count for (client, _, _), count in calls(figures).items()}
    assert counted == {"a": 2, "b": 1, "other": 2}


def test_names_have_the_prefix_and_base_units(figures: Metrics, tmp_path: Path) -> None:
    store = DiskStore(folders_of(fake_config(tmp_path)))
    store.create(Disk("fake-disk-1", 16))
    figures.uploaded(100)
    values = samples(figures)
    assert all(name.startswith("bosh_cpi_") for name, _ in values)
    assert values["bosh_cpi_uploaded_bytes_total", ()] == 100
    assert (values["bosh_cpi_disks", ()], values["bosh_cpi_disk_size_bytes", ()]) == (1, 16 << 20)
    assert 0 < values["bosh_cpi_disk_allocated_bytes", ()] <= 16 << 20
    assert (values["bosh_cpi_calls_running", ()], values["bosh_cpi_calls_waiting", ()]) == (0, 0)
