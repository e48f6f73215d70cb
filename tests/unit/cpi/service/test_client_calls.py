"""Calls of the service whose client has gone, and its pool of workers, with real processes."""

import io
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cpi.config.load import config_of
from cpi.errors import CPIError, NoDiskSpace
from cpi.service.client_calls import ClientCalls
from cpi.service.metrics import Metrics
from cpi.service.worker_pool import WorkerPool


class Recorder(WorkerPool):
    """A pool with a fixed response, which records its jobs."""

    def __init__(self, *results: object) -> None:
        super().__init__(None, 1)
        self._results = list(results)
        self.asked: list[Mapping[str, Any]] = []

    def run(
        self, job: Mapping[str, object], client: socket.socket | None, interruptible: bool
    ) -> dict[str, object]:
        self.asked.append(dict(job))
        return {"result": self._results.pop(0), "error": None, "log": ""}


def calls(pool: WorkerPool, folder: Path) -> ClientCalls:
    config = config_of({"state_dir": str(folder), "run_dir": str(folder)})
    return ClientCalls(config, pool, Metrics(config, pool))


def sent(method: str, *arguments: object) -> bytes:
    request = {"method": method, "arguments": arguments, "context": {}, "api_version": 2}
    return json.dumps({"request": request, "config": {"agent": {}}}).encode()


@pytest.fixture
def gone() -> Iterator[socket.socket]:
    """Return a connection whose client has gone."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        yield ours


@pytest.mark.parametrize(
    ("method", "result", "undoing", "cid"),
    [
        ("create_vm", ["fake-vm-1", {}], "delete_vm", "fake-vm-1"),
        ("create_vm", "fake-vm-1", "delete_vm", "fake-vm-1"),
        ("create_disk", "fake-disk-1", "delete_disk", "fake-disk-1"),
        ("snapshot_disk", "fake-snapshot-1", "delete_snapshot", "fake-snapshot-1"),
    ],
)
def test_what_was_made_at_the_last_moment_is_taken_back(
    gone: socket.socket, tmp_path: Path, method: str, result: object, undoing: str, cid: str
) -> None:
    pool = Recorder(result, None)
    document = sent(method)
    calls(pool, tmp_path).answer("guest", {"call": len(document)}, io.BytesIO(document), gone)
    made, undone = pool.asked
    assert made["request"]["method"] == method
    assert (undone["request"]["method"], undone["request"]["arguments"]) == (undoing, [cid])
    assert undone["client"] == made["client"] == "guest"


@pytest.mark.parametrize("method", ["delete_vm", "create_stemcell", "attach_disk", "has_vm"])
def test_nothing_else_is_taken_back(gone: socket.socket, tmp_path: Path, method: str) -> None:
    pool = Recorder("fake-stemcell-1")
    document = sent(method)
    calls(pool, tmp_path).answer("guest", {"call": len(document)}, io.BytesIO(document), gone)
    assert len(pool.asked) == 1


def test_an_image_is_called_as_its_client_calls_it(gone: socket.socket, tmp_path: Path) -> None:
    """The host's path of an upload means nothing to who has sent it."""
    document, image = sent("create_stemcell", "/its/own/image", {}), b"an image"

    class Complaining(Recorder):
        def run(
            self, job: Mapping[str, object], client: socket.socket | None, interruptible: bool
        ) -> dict[str, object]:
            path = str(job["upload"])
            assert Path(path).read_bytes() == image
            assert (Path(path).parent / "stemcell.MF").read_bytes() == b"name: x"
            assert job["request"]["arguments"][0] == path  # type: ignore[index]
            error = {"type": "x", "message": f"{path} is broken", "ok_to_retry": False}
            return {"result": None, "error": error, "log": f"importing {path}\n"}

    sizes = {"call": len(document), "stemcell.MF": 7, "image": len(image)}
    body = io.BytesIO(document + b"name: x" + image)
    _, response = calls(Complaining(), tmp_path).answer("guest", sizes, body, gone)
    assert response["error"]["message"] == "/its/own/image is broken"  # type: ignore[index]
    assert response["log"] == "importing /its/own/image\n"
    assert list((tmp_path / "uploads").iterdir()) == []


def test_an_upload_that_stops_leaves_nothing(gone: socket.socket, tmp_path: Path) -> None:
    document = sent("create_stemcell", "/image", {})
    sizes = {"call": len(document), "image": 100}
    with pytest.raises(ConnectionError):
        calls(Recorder(), tmp_path).answer("guest", sizes, io.BytesIO(document + b"half"), gone)
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_told_of(tmp_path: Path) -> None:
    receiving = calls(Recorder(), tmp_path)
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(NoDiskSpace, match="No space left"),
    ):
        receiving._receive(5, io.BytesIO(b"image"), full)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[WorkerPool]:
    """Start real workers, whose runtime cannot do anything here; `info` needs none."""
    path = tmp_path / "cpi.json"
    folders = {"state_dir": str(tmp_path / "state"), "run_dir": str(tmp_path / "run")}
    path.write_text(json.dumps(folders))
    made = WorkerPool(str(path), 2)
    yield made
    made.close()


def job(method: str) -> dict[str, object]:
    request = {"method": method, "arguments": [], "context": {}, "api_version": 2}
    return {"client": "guest", "request": request, "config": {}, "upload": ""}


def test_workers_answer_one_call_after_the_other(pool: WorkerPool) -> None:
    for _ in range(3):
        assert pool.run(job("info"), None, False)["error"] is None
    assert (pool.running, pool.waiting) == (0, 0)


def test_a_worker_that_does_not_start_is_told_of(tmp_path: Path) -> None:
    broken = WorkerPool(str(tmp_path / "gone.json"), 1)
    with pytest.raises(CPIError, match="ended with"):
        broken.run(job("info"), None, False)
    assert (broken.running, broken.waiting) == (0, 0)
