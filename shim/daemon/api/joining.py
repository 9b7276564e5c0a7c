"""A container of a pod finds the shim of that pod, while the pod may be about to end.

Runs in: shim, both the one that serves the pod and the short-lived one that was forked for `start`.

`start` tells containerd where the pod's shim listens, and Create comes some milliseconds later. If
the pod's last container is deleted between the two, its shim would end, and Create would find
nobody. So `start` joins first: the shim promises to stay until that Create, or says that it is
going, and then `start` makes another. Both happen on the shim's event loop, one after the other.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping

from google.protobuf.empty_pb2 import Empty

from proto.task_v2_pb2 import ConnectRequest
from shim.ttrpc import Code, Context, Method, RpcError
from shim.ttrpc.protocol import ClientProtocol

_SERVICE, _METHOD = "pywasm.shim.v1.Pod", "Join"
_ANSWER_TIME = 5
"""Seconds in which a shim answers. One that does not is there all the same."""
_CREATE_TIME = 30.0
"""Seconds in which a Create comes; containerd has ended if it does not."""


def join(path: str, id: str) -> bool:
    """Have the shim that listens at `path` wait for the Create of `id`; False if it does not.

    Then nobody listens there, or will in a moment.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        # Not settimeout(): connect() waits for room in a full queue only on a blocking socket.
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _ANSWER_TIME, 0))
        try:
            sock.connect(path)
            protocol = ClientProtocol()
            protocol.request(_SERVICE, _METHOD, ConnectRequest(id=id).SerializeToString())
            sock.sendall(protocol.take())
            while data := sock.recv(4096):
                for answer in protocol.receive(data):
                    # A shim of an older build may not know the question.
                    return answer.code is not Code.UNAVAILABLE  # type: ignore[union-attr]
        except (FileNotFoundError, ConnectionError):
            return False
        except BlockingIOError:
            return True
        return False


class Joining:
    """The ids that are still to be created in this shim."""

    def __init__(self, expired: Callable[[], None]) -> None:
        """`expired` is called when an id is given up."""
        self._expired = expired
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.closed = False
        """Whether it is too late to join."""

    def __bool__(self) -> bool:
        return bool(self._timers)

    def services(self) -> Mapping[str, Mapping[str, Method]]:
        """What the ttrpc server offers to `join`."""
        return {_SERVICE: {_METHOD: Method(ConnectRequest, self._join)}}

    def expect(self, id: str) -> None:
        """Wait for its Create, a while."""
        self.arrived(id)
        loop = asyncio.get_running_loop()
        self._timers[id] = loop.call_later(_CREATE_TIME, self._give_up, id)

    def arrived(self, id: str) -> None:
        """Note that its Create is there, or will not come."""
        if timer := self._timers.pop(id, None):
            timer.cancel()

    async def _join(self, request: ConnectRequest, _: Context) -> Empty:
        if self.closed:
            raise RpcError(Code.UNAVAILABLE, "the shim is about to end")
        self.expect(request.id)
        return Empty()

    def _give_up(self, id: str) -> None:
        del self._timers[id]
        self._expired()
