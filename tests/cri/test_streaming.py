"""Attaching to containers, and forwarding ports of pods."""

from __future__ import annotations

from tests.cri.conftest import IMAGE, Kind
from tests.cri.kubelet import EXITED, Kubelet


def test_attach(kubelet: Kubelet, kind: Kind) -> None:
    container = kubelet.run_pod(kind.handler).run(IMAGE, kind.program("tty"), stdin=True)
    container.until_says("tty 0 0 0")
    with container.attach() as first, container.attach() as second:
        second.send(b"one\n")  # an answer shows that one is attached indeed, not only connected
        second.until(b"got 'one'\n")
        first.send(b"two\n")
        for stream in (first, second):
            stream.until(b"got 'two'\n")
    with container.attach() as again:
        again.send(b"three\n")
        again.until(b"got 'three'\n")
        container.stop()
        assert again.finish() == 0  # it is attaching that has succeeded
    assert container.output() == "tty 0 0 0\ngot 'one'\ngot 'two'\ngot 'three'\n"


def test_attach_to_a_terminal(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    container = pod.run(IMAGE, kind.program("tty"), "size", stdin=True, tty=True)
    with container.attach(tty=True) as stream:
        container.until_says("tty 1 1 1")
        if not kind.suffix:
            stream.resize(101, 31)
            stream.until(b"size 101 31\r\n")
        stream.send(b"one\n")
        stream.until(b"one\r\ngot 'one'\r\n")
        stream.send(b"\x04")
        stream.until(b"end\r\n")
        stream.finish()
    status = container.wait()
    assert (status.state, status.exit_code) == (EXITED, 7)


GET = b"GET /content HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"


def test_port_forward(kubelet: Kubelet, kind: Kind) -> None:
    listen = {"dev.pywasm.listen": "tcp://127.0.0.1:8080"}
    pod = kubelet.run_pod(kind.handler)
    if kind.suffix:
        server = pod.run(IMAGE, "/http_listen.wasm", annotations=listen)
        server.until_says("listening")
        body = b"the content\n"
    else:
        server = pod.run(IMAGE, "/http_native", "8080")
        body = b"from native\n"
        pod.run(IMAGE, "/http_native", "127.0.0.1", "8080").finish()  # so that it listens
    for _ in range(2):
        with pod.forward(8080) as stream:
            assert stream.port(0) == 8080
            stream.send(GET)
            assert b"200 OK" in stream.until(body, channel=0)


def test_port_forward_to_nobody(kubelet: Kubelet, handler: str) -> None:
    pod = kubelet.run_pod(handler)
    with pod.forward(8080) as stream:
        assert stream.port(0) == 8080
        assert b"refused" in stream.until(b"refused", channel=1)
