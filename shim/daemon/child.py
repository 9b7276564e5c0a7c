"""A guest process as its shim sees it, from its clone to its end. Runs in: shim.

The two speak over the control channel; the pidfd tells when the guest has ended.
"""

import asyncio
import os
import socket
from collections.abc import Sequence

from shim.daemon.artifacts import Artifacts
from shim.daemon.process import Process, ProcessError
from shim.engines.base import ModuleError
from shim.engines.cache import Refusal
from shim.guest import control
from shim.linux import clone


class GuestError(ProcessError):
    """A guest could not be made."""


class Child(Process):
    """One guest process."""

    def __init__(self, child: clone.Child, channel: socket.socket, artifacts: Artifacts) -> None:
        super().__init__(child)
        self._channel = channel
        self.artifacts = artifacts

    def watch(self) -> None:
        """Listen to the guest, and for its end."""
        super().watch()
        self._inbox: asyncio.Queue[tuple[control.Message, list[int]] | None] = asyncio.Queue()
        self._loop.add_reader(self._channel, self._receive)

    async def _prepare(self, message: control.Message, stdio: Sequence[int]) -> control.Ready:
        """Give the guest what it waits for, and wait until it is ready to start.

        Raises GuestError.
        """
        self._tell(message, stdio)
        while True:
            packet = await self._inbox.get()
            if packet is None:
                # The channel ends a moment before the process does.
                status = await asyncio.wait_for(asyncio.shield(self.exited), 5)
                raise GuestError(
                    f"the guest ended while it was set up (status {status})", invalid=False
                )
            answer, fds = packet
            if isinstance(answer, control.Ready):
                return answer
            if isinstance(answer, control.Failed):
                raise GuestError(answer.reason, invalid=answer.invalid)
            if isinstance(answer, control.Compile):
                await self._compile(answer, fds)
            elif isinstance(answer, control.Keep):
                self.artifacts.keep(answer.key, fds[0])
            elif isinstance(answer, control.Touch):
                self.artifacts.touch(answer.key, verified=answer.verified)
            elif isinstance(answer, control.Arrived):
                self._follow(fds)
            else:
                await self._serve(answer, fds)

    async def _serve(self, request: control.Message, fds: list[int]) -> None:
        """Answer what only some guests ask. Raises GuestError."""

    def _follow(self, fds: list[int]) -> None:
        """Go on with the sibling that the guest has become. Raises GuestError."""
        try:
            self.succeed(clone.adopt_sibling(*fds))
        except ChildProcessError as error:
            raise GuestError(f"the guest is none of ours: {error}", invalid=False) from None
        self._tell(control.Continue())

    async def _compile(self, request: control.Compile, fds: list[int]) -> None:
        making = asyncio.ensure_future(self.artifacts.make(request, fds[0]))
        # containerd gives up on a Create by having the guest killed: nobody wants the artifact.
        self.exited.add_done_callback(lambda _: making.cancel())
        try:
            made = await making
        except asyncio.CancelledError:
            if not self.exited.done():
                raise
        except ModuleError as error:
            self._tell(control.Refused(str(error)))
        else:
            if isinstance(made, Refusal):
                self._tell(control.Refused(made.reason))
            else:
                self._tell(control.Compiled(made.length, made.name), [made.fd])
                made.close()
        finally:
            for fd in fds:
                os.close(fd)

    async def start(self, *, hooked: bool = False) -> None:
        """Let the program run; `hooked` as in Ready. Raises GuestError if a hook has failed."""
        self._tell(control.Start())
        if hooked:
            packet = await self._inbox.get()
            answer = packet[0] if packet else control.Failed("the guest ended before", False)
            if isinstance(answer, control.Failed):
                raise GuestError(answer.reason, invalid=answer.invalid)
        self._hang_up()

    async def discard(self) -> None:
        """End the guest, whatever it does, and free what it held."""
        await super().discard()
        self._hang_up()

    def _tell(self, message: control.Message, fds: Sequence[int] = ()) -> None:
        try:
            control.send(self._channel, message, fds)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended: what it said last, and its exit, are on their way

    def _receive(self) -> None:
        try:
            self._inbox.put_nowait(control.receive(self._channel))
        except (BlockingIOError, ConnectionResetError):
            # Reset says that it ended without reading our last; its own last is still to be read.
            return
        except EOFError:
            self._hang_up()
            self._inbox.put_nowait(None)
        except OSError as error:
            self._hang_up()
            self._inbox.put_nowait((control.Failed(control.reason(error), invalid=False), []))

    def _hang_up(self) -> None:
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel)
            self._channel.close()
