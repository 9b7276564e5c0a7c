"""The ttrpc client: an asyncio socket under `protocol.ClientProtocol`.

Library; runs in the shim, on its event loop, to publish events, and in tests.
"""

import asyncio
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from shim.ttrpc.protocol import (
    DEADLINE_MESSAGE,
    NO_METADATA,
    ClientProtocol,
    Metadata,
    Response,
)
from shim.ttrpc.status import Code, RpcError

M = TypeVar("M", bound=Message)


class _Pending(NamedTuple):
    future: "asyncio.Future[Any]"
    response: type[Message]
    timer: asyncio.TimerHandle | None


class Client(asyncio.Protocol):
    """A connection to a ttrpc server, made by `connect`; any number of calls may be under way.

    Calls are buffered if the server does not read them, so how many those are is the caller's care.
    """

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol = ClientProtocol()
        self._calls: dict[int, _Pending] = {}
        self._lost = asyncio.Event()

    @classmethod
    async def connect(cls, path: str) -> "Client":
        """Connect to the unix socket at path; a path that begins with NUL names an abstract one.

        Raises OSError, as connect(2) does.
        """
        _, client = await asyncio.get_running_loop().create_unix_connection(cls, path)
        return client

    @property
    def closed(self) -> bool:
        """Whether the connection is lost or closed, so that every call is UNAVAILABLE."""
        return self._transport.is_closing()

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response: type[M],
        *,
        timeout: float | None = None,
        metadata: Metadata = NO_METADATA,
    ) -> M:
        """Send a call and wait for its response; see `send`."""
        return await self.send(
            service, method, request, response, timeout=timeout, metadata=metadata
        )

    def send(
        self,
        service: str,
        method: str,
        request: Message,
        response: type[M],
        *,
        timeout: float | None = None,
        metadata: Metadata = NO_METADATA,
    ) -> "asyncio.Future[M]":
        """Send a call and return the future of its response.

        When this returns, the call is on its way: behind every call sent before it, ahead of every
        later one. The server begins them in that order, and may end them in any. Cancelling the
        future gives up on the response; the server is not told.

        Raises RpcError if the call cannot be sent. The future raises RpcError with the status that
        the server answered, with DEADLINE_EXCEEDED after timeout seconds, or with UNAVAILABLE if
        the connection is lost before there is an answer.
        """
        if self.closed:
            raise RpcError(Code.UNAVAILABLE, "ttrpc: closed")
        stream = self._protocol.request(
            service, method, request.SerializeToString(), timeout=timeout, metadata=metadata
        )
        self._transport.write(self._protocol.take())
        future: asyncio.Future[M] = self._loop.create_future()
        timer = None
        if timeout is not None:
            error = RpcError(Code.DEADLINE_EXCEEDED, DEADLINE_MESSAGE)
            timer = self._loop.call_later(timeout, _fail, future, error)
        self._calls[stream] = _Pending(future, response, timer)
        future.add_done_callback(lambda _: self._forget(stream))
        return future

    def _forget(self, stream: int) -> None:
        self._protocol.forget(stream)
        timer = self._calls.pop(stream).timer
        if timer is not None:
            timer.cancel()

    async def close(self) -> None:
        """Close the connection; calls under way end as UNAVAILABLE."""
        self._transport.abort()
        await self._lost.wait()

    # What follows is called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand responses to the calls that wait for them."""
        for event in self._protocol.receive(data):
            # Every call is unary, so the protocol reports nothing else.
            assert isinstance(event, Response)
            future, response, _ = self._calls[event.stream]
            if event.code is not Code.OK:
                _fail(future, RpcError(event.code, event.message))
                continue
            try:
                message = response.FromString(event.payload)
            except DecodeError as error:
                _fail(future, RpcError(Code.INTERNAL, f"malformed response: {error}"))
            else:
                if not future.done():
                    future.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the calls under way."""
        message = f"ttrpc: closed: {exc}" if exc else "ttrpc: closed"
        for pending in self._calls.values():
            _fail(pending.future, RpcError(Code.UNAVAILABLE, message))
        self._lost.set()


def _fail(future: "asyncio.Future[Any]", error: RpcError) -> None:
    # Done already if it was cancelled, or if two of these things happened at once.
    if not future.done():
        future.set_exception(error)
