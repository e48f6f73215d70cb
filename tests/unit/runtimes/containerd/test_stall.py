"""A server of gRPC that stops in the middle of a stream."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # noqa: TID253 - a test
import pytest
from google.protobuf.wrappers_pb2 import StringValue  # noqa: TID253

from cpi.errors import CloudError
from runtimes.containerd.client import Client

ANSWERED = 3


class _Echo(grpc.GenericRpcHandler):
    """Answers some requests of a stream, then none until it is released; single ones at once.

    But for single ones to `Long`, which wait for the release.
    """

    def __init__(self, answered: int) -> None:
        self._answered = answered
        self.released = threading.Event()
        self.is_stopped = False  # then it answers nothing else either
        self.server: grpc.Server

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        def echo(requests: Iterator[StringValue], context: object) -> Iterator[StringValue]:
            for number, request in enumerate(requests):
                if number == self._answered:
                    self.released.wait(60)
                yield request

        def single(request: StringValue, context: object) -> StringValue:
            if details.method.endswith("/Long") or self.is_stopped:
                self.released.wait(60)
            return request

        types = (StringValue.FromString, StringValue.SerializeToString)
        if details.method.endswith("/Echo"):
            return grpc.stream_stream_rpc_method_handler(echo, *types)
        return grpc.unary_unary_rpc_method_handler(single, *types)


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[_Echo]:
    handler = _Echo(ANSWERED)
    handler.server = server = grpc.server(ThreadPoolExecutor(4), handlers=[handler])
    server.add_insecure_port(f"unix://{tmp_path}/sock")
    server.start()
    yield handler
    handler.released.set()
    server.stop(0).wait()


def exchange(folder: Path, timeout: float, count: int, pause: float = 0) -> list[StringValue]:
    def requests() -> Iterator[StringValue]:
        for number in range(count):
            if number:
                time.sleep(pause)  # a source that is slow, such as a conversion
            yield StringValue(value=str(number))

    client = Client(f"{folder}/sock", "bosh", timeout)
    try:
        return client.exchange(
            "x/Echo", requests(), StringValue, doing="storing", lease="lease", ahead=2
        )
    finally:
        client.close()


def test_a_server_that_stops_is_named(echo: _Echo, tmp_path: Path) -> None:
    echo.is_stopped = True
    with pytest.raises(CloudError) as raised:
        exchange(tmp_path, 0.5, ANSWERED + 5)
    assert raised.value.ok_to_retry
    assert raised.value.message.startswith(f"storing: containerd at {tmp_path}/sock has stopped")
    echo.released.set()


def test_a_server_that_is_busy_with_it_is_waited_for(echo: _Echo, tmp_path: Path) -> None:
    threading.Timer(1.5, echo.released.set).start()
    assert len(exchange(tmp_path, 0.3, ANSWERED + 5)) == ANSWERED + 5


def test_a_slow_source_is_no_stall(echo: _Echo, tmp_path: Path) -> None:
    replies = exchange(tmp_path, 0.2, ANSWERED, pause=0.6)
    assert [reply.value for reply in replies] == ["0", "1", "2"]


def test_a_long_call_goes_on_while_the_server_answers_others(echo: _Echo, tmp_path: Path) -> None:
    threading.Timer(1, echo.released.set).start()
    client = Client(f"{tmp_path}/sock", "bosh", 0.2)
    asked = StringValue(value="layer")
    answer = client.call_however_long("x/Long", asked, StringValue, doing="unpacking", timeout=60)
    client.close()
    assert answer.value == "layer"


def test_a_long_call_ends_with_the_server(echo: _Echo, tmp_path: Path) -> None:
    threading.Timer(0.5, lambda: echo.server.stop(60)).start()  # it takes no other call
    client = Client(f"{tmp_path}/sock", "bosh", 0.3)
    with pytest.raises(CloudError) as raised:
        client.call_however_long(
            "x/Long", StringValue(), StringValue, doing="unpacking", timeout=60
        )
    client.close()
    echo.released.set()
    assert raised.value.ok_to_retry
    assert raised.value.message.startswith("unpacking: ")
