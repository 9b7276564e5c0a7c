"""The client on real unix sockets, mostly against servers that behave badly."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue

from proto import ttrpc_pb2
from shim.ttrpc import Client, Code, Context, Method, RpcError, Server
from shim.ttrpc.frames import HEADER, MAX_DATA, RESPONSE, encode


@pytest.fixture
def path(tmp_path: object) -> str:
    return f"{tmp_path}/s"


@asynccontextmanager
async def connected(path: str) -> AsyncIterator[tuple[Client, socket.socket]]:
    """A client, and the other end of its connection as a bare blocking socket."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        client = await Client.connect(path)
        peer, _ = listening.accept()
        with peer:
            yield client, peer
            await client.close()


async def code_of(awaitable: "asyncio.Future[Empty]") -> Code:
    with pytest.raises(RpcError) as error:
        await awaitable
    return error.value.code


def send(client: Client, timeout: float | None = None) -> "asyncio.Future[Empty]":
    return client.send("s", "m", Empty(), Empty, timeout=timeout)


async def test_connect_fails(path: str) -> None:
    with pytest.raises(FileNotFoundError):
        await Client.connect(path)


async def test_abstract_address() -> None:
    async with connected(f"\0test-ttrpc-client-{os.getpid()}") as (client, peer):
        send(client).cancel()
        assert peer.recv(100) == bytes.fromhex("00000006 00000001 01 00 0a0173 12016d")


async def test_send_is_sent_when_it_returns(path: str) -> None:
    """Without the loop getting a turn, and in order."""
    async with connected(path) as (client, peer):
        for _ in range(3):
            send(client).cancel()
        frames = [HEADER.unpack(peer.recv(16)[:10])[1] for _ in range(3)]
        assert frames == [1, 3, 5]


async def test_handlers_begin_in_the_order_sent(path: str) -> None:
    order: list[str] = []

    async def handler(request: StringValue, context: Context) -> StringValue:
        order.append(request.value)
        await asyncio.sleep(0)
        return request

    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    server = Server({"s": {"m": Method(StringValue, handler)}})
    serving = asyncio.create_task(server.serve(sock))
    client = await Client.connect(path)
    values = [str(n) for n in range(100)]
    futures = [client.send("s", "m", StringValue(value=v), StringValue) for v in values]
    assert [message.value for message in await asyncio.gather(*futures)] == values
    assert order == values
    assert client._calls == {}
    await client.close()
    server.close()
    await server.wait_closed()
    await serving


async def test_answers_out_of_order(path: str) -> None:
    async with connected(path) as (client, peer):
        first, second = send(client), send(client)
        peer.send(encode(3, RESPONSE, 0, b""))
        assert await second == Empty()
        assert not first.done()
        peer.send(encode(1, RESPONSE, 0, b"\x0a\x02\x08\x05"))
        assert await code_of(first) is Code.NOT_FOUND


async def test_connection_lost(path: str) -> None:
    async with connected(path) as (client, peer):
        pending = [send(client), send(client)]
        peer.close()
        assert [await code_of(future) for future in pending] == [Code.UNAVAILABLE] * 2
        assert client.closed
        with pytest.raises(RpcError) as error:
            send(client)
        assert error.value.code is Code.UNAVAILABLE
        with pytest.raises(RpcError, match="UNAVAILABLE: ttrpc: closed"):
            await client.call("s", "m", Empty(), Empty)


async def test_close(path: str) -> None:
    async with connected(path) as (client, peer):
        pending = send(client)
        await client.close()
        assert await code_of(pending) is Code.UNAVAILABLE
        assert client.closed
        await client.close()
        peer.recv(100)
        assert peer.recv(100) == b""


async def test_timeout(path: str) -> None:
    async with connected(path) as (client, peer):
        late = send(client, timeout=0.01)
        assert await code_of(late) is Code.DEADLINE_EXCEEDED
        frame = peer.recv(100)
        assert ttrpc_pb2.Request.FromString(frame[10:]).timeout_nano == 10_000_000
        following = send(client, timeout=60)
        # The late answer is for nobody, and does not disturb the next.
        peer.send(encode(1, RESPONSE, 0, b"") + encode(3, RESPONSE, 0, b""))
        assert await following == Empty()
        assert client._calls == {}
        scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        assert [timer for timer in scheduled if not timer.cancelled()] == []


async def test_cancelled_call(path: str) -> None:
    async with connected(path) as (client, peer):
        task = asyncio.create_task(client.call("s", "m", Empty(), Empty, timeout=60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        following = send(client)
        peer.send(encode(1, RESPONSE, 0, b"") + encode(3, RESPONSE, 0, b""))
        assert await following == Empty()
        assert client._calls == {}


async def test_answer_to_a_call_cancelled_just_now(path: str) -> None:
    async with connected(path) as (client, _):
        future = send(client)
        future.cancel()
        client.data_received(encode(1, RESPONSE, 0, b""))
        assert future.cancelled()


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (encode(1, RESPONSE, 0, b"\xff"), Code.INTERNAL),
        (encode(1, RESPONSE, 0, b"\x12\x02\x0a\x05"), Code.INTERNAL),  # the payload is cut off
        (encode(1, 3, 0, b""), Code.INTERNAL),
        (HEADER.pack(MAX_DATA + 1, 1, 2, 0) + bytes(MAX_DATA + 1), Code.RESOURCE_EXHAUSTED),
    ],
    ids=["envelope", "payload", "data", "oversized"],
)
async def test_bad_answer(path: str, wire: bytes, code: Code) -> None:
    async with connected(path) as (client, peer):
        future = client.send("s", "m", Empty(), StringValue)
        following = send(client)
        peer.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(peer, wire + encode(3, RESPONSE, 0, b""))
        with pytest.raises(RpcError) as error:
            await future
        assert error.value.code is code
        assert await following == Empty()


async def test_oversized_request(path: str) -> None:
    async with connected(path) as (client, _):
        with pytest.raises(RpcError) as error:
            client.send("s", "m", StringValue(value="x" * MAX_DATA), Empty)
        assert error.value.code is Code.RESOURCE_EXHAUSTED
        assert client._calls == {}
