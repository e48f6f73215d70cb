"""Every gRPC status becomes one of BOSH's errors. Needs no daemon."""

import grpc  # noqa: TID253 - a test
import pytest

from runtimes.containerd.client import AlreadyExists, NotFound, Refused, error_from


class Failed(grpc.RpcError):
    """What grpc raises: an error that is its own call."""

    def __init__(self, status: grpc.StatusCode, details: str) -> None:
        super().__init__()
        self._status, self._details = status, details

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize("status", list(grpc.StatusCode))
def test_every_status_is_told_with_what_was_tried(status: grpc.StatusCode) -> None:
    error = error_from(Failed(status, "because"), "starting the task of x", "/run/c.sock")
    assert error.type.startswith("Bosh::Clouds::")
    assert error.message.startswith("starting the task of x: ")
    assert "because" in error.message


@pytest.mark.parametrize(
    ("status", "error_class", "retry"),
    [
        (grpc.StatusCode.NOT_FOUND, NotFound, False),
        (grpc.StatusCode.ALREADY_EXISTS, AlreadyExists, False),
        (grpc.StatusCode.FAILED_PRECONDITION, Refused, False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, None, True),
        (grpc.StatusCode.UNKNOWN, None, False),
    ],
)
def test_what_is_told_apart(
    status: grpc.StatusCode, error_class: type[Exception] | None, retry: bool
) -> None:
    error = error_from(Failed(status, "because"), "x", "/run/c.sock")
    assert error.ok_to_retry is retry
    assert error_class is None or type(error) is error_class


def test_a_full_disk_is_no_disk_space() -> None:
    full = Failed(grpc.StatusCode.UNKNOWN, "write /var/lib: no space left on device")
    assert error_from(full, "x", "/run/c.sock").type == "Bosh::Clouds::NoDiskSpace"


def test_a_containerd_that_is_not_there_says_what_to_do() -> None:
    error = error_from(Failed(grpc.StatusCode.UNAVAILABLE, "refused"), "x", "/run/c.sock")
    assert "/run/c.sock" in error.message
    assert "containerd.address" in error.message
    assert error.ok_to_retry
