"""containerd over gRPC: the only file that imports grpc, and the table of its errors.

Requests and replies are the messages generated from `proto/`; their field numbers are containerd's
(api/services/*/v1, unchanged from 1.6 to 2.x).
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty

from cpi.errors import CloudError, CPIError, NoDiskSpace, NotSupported
from runtimes.containerd.stall import Stall, disconnect

if TYPE_CHECKING:
    from google.protobuf.message import Message

Reply = TypeVar("Reply", bound="Message")

# A message of containerd's own servers may not be larger (defaults.DefaultMaxRecvMsgSize).
MAX_MESSAGE = 16 << 20


class NotFound(CloudError):
    """containerd has no such thing."""


class AlreadyExists(CloudError):
    """containerd has such a thing already."""


class Refused(CloudError):
    """containerd will not do it in the present state (FAILED_PRECONDITION)."""


# gRPC status -> (error, ok_to_retry). Others are CloudErrors that are not worth a retry.
_ERRORS: dict[grpc.StatusCode, tuple[type[CPIError], bool]] = {
    grpc.StatusCode.NOT_FOUND: (NotFound, False),
    grpc.StatusCode.ALREADY_EXISTS: (AlreadyExists, False),
    grpc.StatusCode.FAILED_PRECONDITION: (Refused, False),
    grpc.StatusCode.UNAVAILABLE: (CloudError, True),
    grpc.StatusCode.DEADLINE_EXCEEDED: (CloudError, True),
    grpc.StatusCode.ABORTED: (CloudError, True),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (CloudError, True),
    grpc.StatusCode.UNIMPLEMENTED: (NotSupported, False),
}


def error_from(error: grpc.RpcError, doing: str, address: str) -> CPIError:
    """Return BOSH's error for a failed call; `doing` says what was tried."""
    code, details = error.code(), error.details() or ""
    if "no space left on device" in details:
        return NoDiskSpace(f"{doing}: containerd's disk is full: {details}")
    if code is grpc.StatusCode.UNAVAILABLE:
        return CloudError(
            f"{doing}: containerd does not answer at {address} ({details}); start it, or set "
            "containerd.address to the socket it listens on",
            ok_to_retry=True,
        )
    error_type, retry = _ERRORS.get(code, (CloudError, False))
    return error_type(f"{doing}: containerd answered {code.name}: {details}", ok_to_retry=retry)


class Client:
    """One connection, one namespace. Calls may come from several threads.

    `lease` names the lease that what a call creates belongs to, so that containerd's garbage
    collection leaves it alone until something lasting refers to it.
    """

    def __init__(self, address: str, namespace: str, timeout: float) -> None:
        """Connect lazily to the unix socket `address`; `timeout` is seconds for a single call."""
        self.address = address
        self._timeout = timeout
        self._namespace = namespace
        self._channel = grpc.insecure_channel(
            f"unix://{address}",
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                ("grpc.enable_http_proxy", 0),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    def close(self) -> None:
        self._channel.close()

    def call(
        self,
        method: str,
        request: "Message",
        reply: type[Reply],
        *,
        doing: str,
        lease: str | None = None,
        timeout: float | None = None,
    ) -> Reply:
        """Make one unary call, `method` as in "tasks.v1.Tasks/Start".

        Raises NotFound, AlreadyExists, Refused, NoDiskSpace, NotSupported, CloudError.
        """
        stub: Callable[..., Reply] = _stub(self._channel.unary_unary, method, reply)
        try:
            return stub(request, timeout=timeout or self._timeout, metadata=self._metadata(lease))
        except grpc.RpcError as error:
            raise error_from(error, doing, self.address) from None

    def call_or_none(
        self, method: str, request: "Message", reply: type[Reply], **options: Any
    ) -> Reply | None:
        """Make a call, but return None when containerd has no such thing."""
        try:
            return self.call(method, request, reply, **options)
        except NotFound:
            return None

    def call_however_long(
        self,
        method: str,
        request: "Message",
        reply: type[Reply],
        *,
        doing: str,
        timeout: float,
    ) -> Reply:
        """Make a call that may take hours, as long as containerd answers others meanwhile.

        timeout: seconds for the whole call. Raises like `call`.
        """
        stub: Any = _stub(self._channel.unary_unary, method, reply)
        future = stub.future(request, timeout=timeout, metadata=self._metadata(None))
        try:
            while True:
                try:
                    answer: Reply = future.result(timeout=self._timeout)
                    return answer
                except grpc.FutureTimeoutError:
                    self._ask_version(doing)
        except grpc.RpcError as error:
            raise error_from(error, doing, self.address) from None
        finally:
            future.cancel()

    def listing(
        self, method: str, request: "Message", reply: type[Reply], *, doing: str
    ) -> list[Reply]:
        """Make a call whose reply comes in pieces. Raises like `call`."""
        stub: Callable[..., Iterable[Reply]] = _stub(self._channel.unary_stream, method, reply)
        try:
            return list(stub(request, timeout=self._timeout, metadata=self._metadata(None)))
        except grpc.RpcError as error:
            raise error_from(error, doing, self.address) from None

    def exchange(
        self,
        method: str,
        requests: "Iterable[Message]",
        reply: type[Reply],
        *,
        doing: str,
        lease: str,
        ahead: int,
    ) -> list[Reply]:
        """Send a stream, one reply to each request, with at most `ahead` requests unanswered.

        The bound keeps memory flat: gRPC itself would queue what the server has not read. A reply
        that does not come within the timeout of a call ends the stream. Raises like `call`.
        """
        stub = _stub(self._channel.stream_stream, method, reply)
        window = threading.Semaphore(ahead)
        failure: list[Exception] = []

        def paced() -> "Iterator[Message]":
            try:
                for request in requests:
                    window.acquire()
                    stall.sent()
                    yield request
            except Exception as error:  # grpc swallows it; the caller must see the cause
                failure.append(error)
                raise

        replies: list[Reply] = []
        stall = Stall(lambda: disconnect(self.address), self._is_alive, self._timeout)
        stream = stub(paced(), metadata=self._metadata(lease))
        try:
            with stall:
                for answer in stream:
                    replies.append(answer)
                    stall.answered()
                    window.release()
        except grpc.RpcError as error:
            if failure:
                raise failure[0] from None
            if stall.was_noticed:
                raise CloudError(
                    f"{doing}: containerd at {self.address} has stopped answering for "
                    f"{self._timeout:g} s (containerd.timeout)",
                    ok_to_retry=True,
                ) from None
            raise error_from(error, doing, self.address) from None
        finally:
            window.release(ahead)
            stream.cancel()
        return replies

    def _is_alive(self) -> bool:
        """Tell whether containerd answers at all."""
        try:
            self._ask_version("asking for its version")
        except CPIError:
            return False
        return True

    def _ask_version(self, doing: str) -> None:
        self.call("version.v1.Version/Version", Empty(), Empty, doing=doing)

    def _metadata(self, lease: str | None) -> tuple[tuple[str, str], ...]:
        pairs = (("containerd-namespace", self._namespace),)
        return (*pairs, ("containerd-lease", lease)) if lease else pairs


def _stub(make: Callable[..., Any], method: str, reply: type[Reply]) -> Any:
    return make(
        f"/containerd.services.{method}",
        request_serializer=_serialize,
        response_deserializer=reply.FromString,
    )


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())
