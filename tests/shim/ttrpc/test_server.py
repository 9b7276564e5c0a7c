"""The server on real unix sockets: concurrency, deadlines, disconnection, closing, bad input."""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from hypothesis import given, settings
from hypothesis import strategies as st

from proto import ttrpc_pb2
from shim.ttrpc import Client, Code, Context, Method, RpcError, Server
from shim.ttrpc.frames import REQUEST, encode

SERVICE = "test.Echo"


async def echo(request: StringValue, context: Context) -> StringValue:
    return request


def listen(path: str, kind: type[socket.socket] = socket.socket) -> socket.socket:
    sock = kind(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    return sock


class Running:
    """A server under test, and the clients made for it."""

    def __init__(self, server: Server, path: str) -> None:
        self.server, self.path = server, path
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        client = await Client.connect(self.path)
        self.clients.append(client)
        return client


@asynccontextmanager
async def running(
    path: str,
    handler: Callable[[Any, Context], Awaitable[Message]] = echo,
    *,
    request: type[Message] = StringValue,
    kind: type[socket.socket] = socket.socket,
    cancel_on_disconnect: bool = False,
    allowed_uid: int | None = None,
) -> AsyncIterator[Running]:
    methods = {
        "Echo": Method(StringValue, echo),
        "Test": Method(request, handler, cancel_on_disconnect),
    }
    server = Server({SERVICE: methods}, allowed_uid=allowed_uid)
    serving = asyncio.create_task(server.serve(listen(path, kind)))
    result = Running(server, path)
    loop = asyncio.get_running_loop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    try:
        yield result
        assert live_timers() == []
    finally:
        for client in result.clients:
            await client.close()
        server.close()
        await server.wait_closed(1)
        await serving
    assert errors == []


def live_timers() -> list[asyncio.TimerHandle]:
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [timer for timer in scheduled if not timer.cancelled()]


@pytest.fixture
def path(tmp_path: object) -> str:
    return f"{tmp_path}/s"


async def call(client: Client, value: str, method: str = "Test", **options: Any) -> str:
    request = StringValue(value=value)
    return (await client.call(SERVICE, method, request, StringValue, **options)).value


async def status(awaitable: Awaitable[object]) -> tuple[Code, str]:
    with pytest.raises(RpcError) as error:
        await awaitable
    return error.value.code, error.value.message


async def test_call(path: str) -> None:
    async with running(path) as run:
        client = await run.connect()
        assert await call(client, "hello") == "hello"
        assert await call(client, "") == ""


async def test_context(path: str) -> None:
    contexts: list[Context] = []

    async def handler(request: Empty, context: Context) -> Empty:
        contexts.append(context)
        return request

    async with running(path, handler, request=Empty) as run:
        client = await run.connect()
        before = asyncio.get_running_loop().time()
        await client.call(SERVICE, "Test", Empty(), Empty, timeout=60, metadata={"K": ["a", "b"]})
        await client.call(SERVICE, "Test", Empty(), Empty)
    assert contexts[0].metadata == {"k": ["a", "b"]}
    assert contexts[0].peer == (os.getpid(), os.geteuid(), os.getegid())
    assert contexts[0].deadline is not None
    assert before + 59.9 < contexts[0].deadline
    assert (contexts[1].metadata, contexts[1].deadline) == ({}, None)


async def test_a_waiting_call_blocks_nobody(path: str) -> None:
    release = asyncio.Event()

    async def wait(request: StringValue, context: Context) -> StringValue:
        await release.wait()
        return request

    async with running(path, wait) as run:
        client = await run.connect()
        waiting = [asyncio.create_task(call(client, str(n))) for n in range(5)]
        assert await call(client, "x", "Echo") == "x"
        assert await call(await run.connect(), "y", "Echo") == "y"
        assert not any(task.done() for task in waiting)
        release.set()
        assert await asyncio.gather(*waiting) == ["0", "1", "2", "3", "4"]


async def test_errors(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: StringValue, context: Context) -> StringValue:
        if request.value == "status":
            raise RpcError(Code.FAILED_PRECONDITION, "not now")
        if request.value == "bug":
            raise FileNotFoundError(2, "gone", "/tmp/\udcff")
        return None  # type: ignore[return-value]

    async with running(path, handler) as run:
        client = await run.connect()
        assert await status(call(client, "status")) == (Code.FAILED_PRECONDITION, "not now")
        assert caplog.records == []
        # Not NOT_FOUND, which would tell containerd that there is no such container.
        assert await status(call(client, "bug")) == (
            Code.UNKNOWN,
            "FileNotFoundError: [Errno 2] gone: '/tmp/\\udcff'",
        )
        assert (await status(call(client, "nothing")))[0] is Code.UNKNOWN
        assert [record.message for record in caplog.records] == [f"{SERVICE}/Test failed"] * 2
        assert await status(call(client, "", "Nope")) == (Code.UNIMPLEMENTED, "method Nope")
        assert await status(client.call("No", "No", Empty(), Empty)) == (
            Code.UNIMPLEMENTED,
            "service No",
        )
        malformed = client.call(SERVICE, "Test", BytesValue(value=b"\xff"), Empty)
        assert (await status(malformed))[0] is Code.INVALID_ARGUMENT
        assert await call(client, "still here", "Echo") == "still here"


async def test_deadline(path: str) -> None:
    """The handler is cancelled, and the client is not kept waiting for it to clean up."""
    cancelled, cleaned = asyncio.Event(), asyncio.Event()

    async def handler(request: StringValue, context: Context) -> StringValue:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            await cleaned.wait()
            raise
        return request

    async with running(path, handler) as run:
        reader, writer = await asyncio.open_unix_connection(path)
        request = ttrpc_pb2.Request(service=SERVICE, method="Test", timeout_nano=10_000_000)
        writer.write(encode(1, REQUEST, 0, request.SerializeToString()))
        response = encode(1, 2, 0, b"\x0a\x1d\x08\x04\x12\x19context deadline exceeded")
        assert await reader.readexactly(len(response)) == response
        await cancelled.wait()
        cleaned.set()
        # The next answer is the next call's: the cancelled one gives no second answer.
        request = ttrpc_pb2.Request(service=SERVICE, method="Echo")
        writer.write(encode(3, REQUEST, 0, request.SerializeToString()))
        assert await reader.readexactly(10) == encode(3, 2, 0, b"")
        writer.close()
        await writer.wait_closed()
        assert run.server._tasks == set()


async def test_deadline_that_is_over(path: str) -> None:
    started: list[Message] = []

    async def handler(request: StringValue, context: Context) -> StringValue:
        started.append(request)
        return request

    async with running(path, handler):
        reader, writer = await asyncio.open_unix_connection(path)
        request = ttrpc_pb2.Request(service=SERVICE, method="Test", timeout_nano=-1)
        writer.write(encode(1, REQUEST, 0, request.SerializeToString()))
        response = encode(1, 2, 0, b"\x0a\x1d\x08\x04\x12\x19context deadline exceeded")
        assert await reader.readexactly(len(response)) == response
        writer.close()
        await writer.wait_closed()
    assert started == []


async def test_deadline_not_reached(path: str) -> None:
    async with running(path) as run:
        client = await run.connect()
        assert await call(client, "x", timeout=30) == "x"
        (connection,) = run.server._connections
        assert connection._calls == {}
        assert live_timers() == []


@pytest.mark.parametrize("cancel", [False, True])
async def test_client_disconnects(path: str, *, cancel: bool) -> None:
    started, release, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    how: list[str] = []

    async def handler(request: StringValue, context: Context) -> StringValue:
        started.set()
        try:
            await release.wait()
            how.append("completed")
        except asyncio.CancelledError:
            how.append("cancelled")
            raise
        finally:
            ended.set()
        return request

    async with running(path, handler, cancel_on_disconnect=cancel) as run:
        client = await run.connect()
        pending = asyncio.create_task(call(client, "x"))
        await started.wait()
        await client.close()
        assert (await status(pending))[0] is Code.UNAVAILABLE
        if not cancel:
            assert await call(await run.connect(), "y", "Echo") == "y"
            assert len(run.server._connections) == 1
            assert not ended.is_set()
            release.set()
        await ended.wait()
        assert how == ["cancelled" if cancel else "completed"]


async def test_deadline_after_the_client_has_gone(path: str) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def handler(request: StringValue, context: Context) -> StringValue:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return request

    async with running(path, handler) as run:
        client = await run.connect()
        pending = asyncio.create_task(call(client, "x", timeout=0.2))
        await started.wait()
        await client.close()
        assert (await status(pending))[0] is Code.UNAVAILABLE
        assert not ended.is_set()
        await asyncio.wait_for(ended.wait(), 5)


async def test_close_lets_calls_end(path: str) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def handler(request: StringValue, context: Context) -> StringValue:
        started.set()
        await release.wait()
        return request

    async with running(path, handler) as run:
        busy, idle = await run.connect(), await run.connect()
        assert await call(idle, "x", "Echo") == "x"
        pending = asyncio.create_task(call(busy, "done"))
        await started.wait()
        run.server.close()
        assert await status(call(busy, "", "Echo")) == (Code.UNAVAILABLE, "server is closing")
        await idle._lost.wait()
        assert not busy.closed
        with pytest.raises(ConnectionRefusedError):
            await Client.connect(path)
        closed = asyncio.create_task(run.server.wait_closed())
        await asyncio.sleep(0)
        assert not closed.done()
        release.set()
        assert await pending == "done"
        await busy._lost.wait()
        await closed


async def test_a_handler_may_close_its_server(path: str) -> None:
    async def handler(request: StringValue, context: Context) -> StringValue:
        run.server.close()
        return request

    async with running(path, handler) as run:
        client = await run.connect()
        assert await call(client, "bye") == "bye"
        await run.server.wait_closed()
        await client._lost.wait()


async def test_close_with_grace(path: str) -> None:
    cleaned: list[bool] = []

    async def handler(request: StringValue, context: Context) -> StringValue:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)
        return request

    async with running(path, handler) as run:
        client = await run.connect()
        pending = asyncio.create_task(call(client, "x"))
        assert await call(client, "y", "Echo") == "y"
        run.server.close()
        await run.server.wait_closed(grace=0.01)
        assert (await status(pending))[0] is Code.CANCELLED
        assert cleaned == [True]


async def test_close_with_a_client_that_does_not_read(path: str) -> None:
    async def handler(request: StringValue, context: Context) -> StringValue:
        return StringValue(value="x" * 4_000_000)

    async with running(path, handler) as run:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.setblocking(False)
            request = ttrpc_pb2.Request(service=SERVICE, method="Test").SerializeToString()
            sock.send(encode(1, REQUEST, 0, request))
            assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"\x00"
            run.server.close()
            await run.server.wait_closed(grace=0.01)


async def test_close_before_serve(path: str) -> None:
    server = Server({})
    server.close()
    await server.serve(listen(path))
    await server.wait_closed()


@pytest.mark.root
@pytest.mark.parametrize("allowed_uid", [None, 65534])
async def test_other_users_are_refused(
    allowed_uid: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"\0test-ttrpc-{os.getpid()}"  # abstract: nothing but the check keeps them out
    async with running(path, allowed_uid=allowed_uid) as run:
        with socket.socket(socket.AF_UNIX) as sock:
            os.seteuid(65534)
            try:
                sock.connect(path)
            finally:
                os.seteuid(0)
            request = ttrpc_pb2.Request(service=SERVICE, method="Echo").SerializeToString()
            reader, writer = await asyncio.open_unix_connection(sock=sock)
            if allowed_uid is None:
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await reader.readexactly(1)
                assert "refused a connection of uid 65534" in caplog.text
            else:
                writer.write(encode(1, REQUEST, 0, request))
                assert await reader.readexactly(10) == encode(1, 2, 0, b"")
            writer.close()
        assert await call(await run.connect(), "x") == "x"


class OutOfDescriptors(socket.socket):
    """A listening socket that cannot accept until told so."""

    able = False
    refusals = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if not self.able:
            OutOfDescriptors.refusals += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_out_of_descriptors(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(path, kind=OutOfDescriptors) as run:
        client = await run.connect()
        answer = asyncio.create_task(call(client, "x"))
        await asyncio.sleep(0.15)
        assert not answer.done()
        monkeypatch.setattr(OutOfDescriptors, "able", True)
        assert await answer == "x"
    assert "Too many open files" in caplog.text
    assert OutOfDescriptors.refusals < 20  # the loop did not spin


class Broken(socket.socket):
    """A listening socket that cannot accept at all."""

    def accept(self) -> tuple[socket.socket, Any]:
        raise OSError(errno.EINVAL, "Invalid argument")


async def test_accept_fails(path: str) -> None:
    server = Server({})
    serving = asyncio.create_task(server.serve(listen(path, Broken)))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        with pytest.raises(OSError, match="Invalid argument"):
            await serving
    server.close()
    await server.wait_closed()


async def test_a_client_that_does_not_read_is_not_read_from(path: str) -> None:
    count, size = 60, 200_000
    handled = 0

    async def handler(request: StringValue, context: Context) -> StringValue:
        nonlocal handled
        handled += 1
        return request

    async with running(path, handler):
        # No more than a frame is read ahead by the stream reader.
        reader, writer = await asyncio.open_unix_connection(path, limit=1)
        payload = StringValue(value="x" * size).SerializeToString()
        request = ttrpc_pb2.Request(service=SERVICE, method="Test", payload=payload)
        for n in range(count):
            writer.write(encode(1 + 2 * n, REQUEST, 0, request.SerializeToString()))
        before = -1
        while handled != before:
            before = handled
            await asyncio.sleep(0.05)
        assert 0 < handled < count
        response = ttrpc_pb2.Response(payload=payload).SerializeToString()
        for n in range(count):
            expected = encode(1 + 2 * n, 2, 0, response)
            assert await reader.readexactly(len(expected)) == expected
        assert handled == count
        writer.close()
        await writer.wait_closed()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes_do_not_hurt_others(chunks: list[bytes]) -> None:
    async def scenario() -> None:
        async with running(f"\0test-ttrpc-any-{os.getpid()}") as run:
            _, writer = await asyncio.open_unix_connection(run.path)
            for chunk in chunks:
                writer.write(chunk)
                await asyncio.sleep(0)
            assert await call(await run.connect(), "x") == "x"
            writer.close()
            await writer.wait_closed()

    asyncio.run(scenario())
