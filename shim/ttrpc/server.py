"""The ttrpc server: an asyncio socket under `protocol.ServerProtocol`, and a task for every call.

Library; runs in the shim, on its event loop. Handlers run concurrently, so one that waits holds up
nobody, and a reply is written the moment its handler returns.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError, Message

from shim.linux import fleeting
from shim.linux.peer import Peer, peer_of
from shim.ttrpc.protocol import (
    DEADLINE_MESSAGE,
    Aborted,
    Metadata,
    Request,
    ServerProtocol,
)
from shim.ttrpc.status import Code, RpcError

logger = logging.getLogger(__name__)

RECEIVE = 1 << 16  # bytes at a time
ACCEPT_PAUSE = 0.1  # seconds without accepting when the process or the system is out of something
OUT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True)
class Context:
    """What a handler may want to know of its call besides the request."""

    metadata: Metadata  # lower-case key to values
    deadline: float | None  # loop time
    peer: Peer


class Decodable(Protocol):
    """A message's class: one of protobuf's, or one that knows better what not to copy."""

    def FromString(self, data: Any, /) -> Any:
        """Return the message in a buffer. Raises DecodeError, RpcError."""


class Method(NamedTuple):
    """How a method is served.

    The handler returns the response, or raises RpcError to have that status answered; any other
    exception is logged and answered with UNKNOWN. At the call's deadline the client is answered
    DEADLINE_EXCEEDED and the handler is cancelled.

    When the client disconnects, the handler runs to its end all the same, and its response is
    dropped: containerd may be restarted at any moment, and what it asked for should not be left
    half done. With cancel_on_disconnect it is cancelled instead, which suits those that only wait.
    """

    request: Decodable
    handler: Callable[[Any, Context], Awaitable[Message]]
    cancel_on_disconnect: bool = False


class Server:
    """Serves methods, by service name and method name, on unix sockets.

    Anyone who may write to the socket can have containers run, so besides the socket's mode the
    peer is checked: root, our own user and `allowed_uid` may connect, others are closed at once.
    """

    def __init__(
        self,
        services: Mapping[str, Mapping[str, Method]],
        *,
        allowed_uid: int | None = None,
    ) -> None:
        self._services = services
        self._uids = {0, os.geteuid(), allowed_uid}
        self._closing = False
        self._serving: set[asyncio.Future[None]] = set()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()  # those that connect, and handlers
        self._gone = asyncio.Event()

    async def serve(self, sock: socket.socket) -> None:
        """Accept connections from a listening unix socket until `close`, and then close it.

        A pathname socket is left in the filesystem. Raises OSError if accepting is impossible.
        """
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        stopped = loop.create_future()
        self._serving.add(stopped)
        if self._closing:
            stopped.set_result(None)

        def accept() -> None:
            try:
                connected, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in OUT_OF:
                    # The waiting connection keeps the socket readable: listening on would spin.
                    logger.warning("cannot accept a connection: %s", error)
                    loop.remove_reader(sock)
                    loop.call_later(ACCEPT_PAUSE, resume)
                elif not stopped.done():
                    stopped.set_exception(error)
                return
            peer = peer_of(connected)
            if peer.uid not in self._uids:
                logger.warning("refused a connection of uid %d, pid %d", peer.uid, peer.pid)
                connected.close()
                return
            self._spawn(self._connect(connected, peer))

        def resume() -> None:
            if not stopped.done():
                loop.add_reader(sock, accept)

        resume()
        try:
            await stopped
        finally:
            self._serving.discard(stopped)
            loop.remove_reader(sock)
            sock.close()

    async def _connect(self, connected: socket.socket, peer: Peer) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Connection(self, peer), connected
            )
        except OSError as error:
            logger.warning("lost a connection while accepting it: %s", error)
            connected.close()

    def close(self) -> None:
        """Accept no more connections and calls; close connections as their calls are done."""
        self._closing = True
        for stopped in self._serving:
            if not stopped.done():
                stopped.set_result(None)
        for connection in list(self._connections):
            connection.close_if_idle()
        self._check_gone()

    async def wait_closed(self, grace: float | None = None) -> None:
        """Wait, after `close`, until every handler has ended and every connection is closed.

        After `grace` seconds the handlers that are left are cancelled and their calls answered
        CANCELLED; then the wait is only for them to clean up.
        """
        try:
            await asyncio.wait_for(self._gone.wait(), grace)
        except asyncio.TimeoutError:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            for connection in list(self._connections):
                connection.abort()
            await self._gone.wait()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._check_gone()

    def _check_gone(self) -> None:
        if self._closing and not self._connections and not self._tasks:
            self._gone.set()


class _Running(NamedTuple):
    task: "asyncio.Task[None]"
    timer: asyncio.TimerHandle | None
    cancel_on_disconnect: bool


class _Connection(asyncio.BufferedProtocol):
    """One accepted connection.

    A request may hold secrets. It is received into memory of ours, and wiped when it is decoded.
    """

    _transport: asyncio.Transport

    def __init__(self, server: Server, peer: Peer) -> None:
        self._server = server
        self._peer = peer
        self._protocol = ServerProtocol()
        self._buffer = fleeting.buffer(RECEIVE)
        # The calls that are owed an answer, by stream. A handler whose call is not here any more,
        # because its time is up or the client is gone, answers to nobody.
        self._calls: dict[int, _Running] = {}
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server._connections.add(self)
        self.close_if_idle()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        received = self._buffer[:nbytes]
        try:
            for event in self._protocol.receive(received):
                if isinstance(event, Request):
                    try:
                        self._start(event)
                    except RpcError as error:
                        self._protocol.fail(event.stream, error.code, error.message)
                elif isinstance(event, Aborted):
                    self._drop(event.stream)
                # Data belongs to streaming methods. We have none: as in Go, a client that streams
                # to a unary method gets its response, and may send what it likes before.
        finally:
            fleeting.wipe(received)
        self._flush()

    def _start(self, call: Request) -> None:
        service = self._server._services.get(call.service)
        if service is None:
            raise RpcError(Code.UNIMPLEMENTED, f"service {call.service}")
        method = service.get(call.method)
        if method is None:
            raise RpcError(Code.UNIMPLEMENTED, f"method {call.method}")
        if self._server._closing:
            raise RpcError(Code.UNAVAILABLE, "server is closing")
        if call.timeout is not None and call.timeout <= 0:
            raise RpcError(Code.DEADLINE_EXCEEDED, DEADLINE_MESSAGE)
        try:
            request = method.request.FromString(call.payload)
        except DecodeError as error:
            raise RpcError(Code.INVALID_ARGUMENT, f"malformed request: {error}") from None
        deadline = timer = None
        if call.timeout is not None:
            deadline = self._loop.time() + call.timeout
            timer = self._loop.call_at(deadline, self._expire, call.stream)
        context = Context(call.metadata, deadline, self._peer)
        task = self._server._spawn(self._run(call, method, request, context))
        self._calls[call.stream] = _Running(task, timer, method.cancel_on_disconnect)

    async def _run(self, call: Request, method: Method, request: Any, context: Context) -> None:
        code, message, payload = Code.OK, "", b""
        try:
            payload = (await method.handler(request, context)).SerializeToString()
        except RpcError as error:
            code, message = error.code, error.message
        except asyncio.CancelledError:
            code, message = Code.CANCELLED, "context canceled"
        except Exception as error:
            logger.exception("%s/%s failed", call.service, call.method)
            code, message = Code.UNKNOWN, f"{type(error).__name__}: {error}"
        if call.stream not in self._calls:
            return
        self._forget(call.stream)
        if code is Code.OK:
            self._protocol.respond(call.stream, payload)
        else:
            self._protocol.fail(call.stream, code, message)
        self._flush()
        self.close_if_idle()

    def _expire(self, stream: int) -> None:
        # Answered at once: a handler may take its time to clean up, or ignore being cancelled.
        self._forget(stream).task.cancel()
        self._protocol.fail(stream, Code.DEADLINE_EXCEEDED, DEADLINE_MESSAGE)
        self._flush()
        self.close_if_idle()

    def _drop(self, stream: int) -> None:
        running = self._forget(stream)
        if running.cancel_on_disconnect:
            running.task.cancel()
        elif running.timer is not None:
            # It may not run longer than if the client had stayed.
            late = self._loop.call_at(running.timer.when(), running.task.cancel)
            running.task.add_done_callback(lambda _: late.cancel())

    def _forget(self, stream: int) -> _Running:
        running = self._calls.pop(stream)
        if running.timer is not None:
            running.timer.cancel()
        return running

    def _flush(self) -> None:
        if out := self._protocol.take():
            self._transport.write(out)

    # A client that sends calls but does not read the answers must not fill our memory with them.
    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def close_if_idle(self) -> None:
        """Close the connection, if the server is closing and no call waits for its answer."""
        if self._server._closing and not self._calls:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection even if the client has not read everything."""
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for stream in list(self._calls):
            self._drop(stream)
        self._server._connections.discard(self)
        self._server._check_gone()
