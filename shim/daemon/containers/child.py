"""A guest process as its shim sees it, from its clone to its end. Runs in: shim.

The two speak over the control channel; the pidfd tells when the guest has ended. Up to `Sealed` a
guest is nothing but our code, and is served what it asks for. From there on it may be anybody, and
is heard only on whether it is ready. One that says something else is ended.
"""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from shim.daemon.containers.artifacts import Artifacts
from shim.daemon.containers.process import Process, ProcessError
from shim.daemon.log import Logger
from shim.engines.base import ModuleError, TryAgainError
from shim.guest import control
from shim.linux import clone

_PATIENCE = 5.0  # seconds, for a guest that has closed its channel to end

_CARRIES = {
    control.Arrived: (1,),
    control.Compile: (1,),
    control.Keep: (1,),
    control.Native: (0, 1),
}
"""How many descriptors come with a request; with all others none."""


class GuestError(ProcessError):
    """A guest could not be made."""


class Child(Process):
    """One guest process."""

    def __init__(
        self,
        child: clone.Child,
        channel: socket.socket,
        artifacts: Artifacts,
        owner: int,
        log: Logger,
        *,
        comes_to_others: bool,
    ) -> None:
        """`owner` as in `Artifacts.owner`.

        `comes_to_others`: it goes on as a sibling, in a PID namespace that it was not born in.
        """
        super().__init__(child)
        self._channel = channel
        self.artifacts = artifacts
        self.owner = owner
        self._log = log
        self._expected: set[type[control.Message]] = {
            *(control.Touch, control.Keep, control.Compile),
            *(control.Sealed, control.Failed),
        }
        """What it may say next."""
        self._comes_to_others = comes_to_others
        self._is_between = comes_to_others
        """Whether there may be a sibling that it has become, and that nobody knows yet.

        From the beginning: what it says of it may be heard too late.
        """
        self.on_stray: Callable[[], None] = lambda: None
        """Called where such a one may be left."""
        self._news = asyncio.Event()

    def watch(self) -> None:
        """Listen for the guest's end."""
        super().watch()
        # Who has ended may have left its end of the channel to others.
        self.exited.add_done_callback(lambda _: self._has_ended())

    def _has_ended(self) -> None:
        self._news.set()
        if self._is_between:
            self.on_stray()

    async def _prepare(self, message: control.Message, stdio: Sequence[int]) -> control.Ready:
        """Give the guest what it waits for, and wait until it is ready to start.

        Raises GuestError.
        """
        self._tell(message, stdio)
        while True:
            said, fds = await self._hear()
            if isinstance(said, control.Ready):
                self._expected = {control.Started, control.Failed}
                return said
            if isinstance(said, control.Sealed):
                self._expected = {control.Ready, control.Failed}
                if self._comes_to_others:
                    self._expected.add(control.Arrived)
            elif isinstance(said, control.Arrived):
                self._expected.discard(control.Arrived)
                self._follow(fds[0])
            else:
                await self._serve(said, fds)

    async def _serve(self, request: control.Message, fds: list[int]) -> None:
        """Do what the guest asks for; its descriptors are taken over. Raises GuestError, OSError.

        It is one of those that are expected.
        """
        if isinstance(request, control.Compile):
            await self._compile(request, fds[0])
        elif isinstance(request, control.Keep):
            self._expected.discard(control.Keep)  # a container has one filter
            self.artifacts.keep(self.owner, request.key, fds[0])
        elif isinstance(request, control.Touch):
            self.artifacts.touch(self.owner, request.key, verified=request.verified)

    def _follow(self, pidfd: int) -> None:
        """Go on with the sibling that the guest has become. Raises GuestError."""
        try:
            self.succeed(clone.adopt_sibling(pidfd))
        except ChildProcessError:
            os.close(pidfd)
            raise self._broken("Arrived with a process that is none of its siblings") from None
        self._is_between = False
        self._tell(control.Continue())

    async def _compile(self, request: control.Compile, module: int) -> None:
        making = asyncio.ensure_future(self.artifacts.make(self.owner, request, module))
        # containerd gives up on a Create by having the guest killed: nobody waits any more.
        self.exited.add_done_callback(lambda _: making.cancel())
        try:
            made = await making
        except asyncio.CancelledError:
            if not self.exited.done():
                raise
        except ModuleError as error:
            self._tell(control.Refused(str(error), isinstance(error, TryAgainError)))
        else:
            self._tell(control.Compiled(made.length, made.name), [made.fd])
            made.close()
        finally:
            os.close(module)

    async def start(self, *, hooked: bool = False) -> None:
        """Let the program run; `hooked` as in Ready. Raises GuestError if a hook has failed."""
        self._tell(control.Start())
        if hooked:
            await self._hear()
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

    async def _hear(self) -> tuple[control.Message, list[int]]:
        """Wait for what the guest says next.

        Raises GuestError where it gives up or ends, and ends it where it is not for it to say.
        """
        try:
            said, fds = await self._receive()
        except EOFError:
            await asyncio.wait([self.exited], timeout=_PATIENCE)
            status = f"status {self.exited.result()}" if self.exited.done() else "it lives on"
            raise GuestError(
                f"the guest ended while it was set up ({status})", invalid=False
            ) from None
        except control.MessageError as error:
            raise self._broken(str(error)) from None
        except OSError as error:
            raise GuestError(control.reason(error), invalid=False) from error
        kind = type(said)
        if kind in self._expected and len(fds) in _CARRIES.get(kind, (0,)):
            if isinstance(said, control.Failed):
                again = said.number == errno.EAGAIN
                raise GuestError(said.reason, invalid=said.invalid, again=again)
            return said, fds
        for fd in fds:
            os.close(fd)
        raise self._broken(f"{kind.__name__} with {len(fds)} descriptors")

    async def _receive(self) -> tuple[control.Message, list[int]]:
        """Wait for a message. Raises EOFError, OSError, MessageError."""
        while self._channel.fileno() >= 0:
            # Only while somebody waits: what is said in between stays with the kernel, which has a
            # limit for it.
            self._loop.add_reader(self._channel, self._news.set)
            try:
                await self._news.wait()
            finally:
                if self._channel.fileno() >= 0:
                    self._loop.remove_reader(self._channel)
            self._news.clear()
            try:
                return control.receive(self._channel)
            except BlockingIOError:
                if self.exited.done():
                    break
            except ConnectionResetError:
                pass  # it ended without reading our last; its own last is still to be read
        raise EOFError

    def _broken(self, what: str) -> GuestError:
        """End a guest that does not keep to the protocol; returns what to say of it."""
        self._log.error("a guest broke the protocol and is killed", guest=self.pid, said=what)
        with suppress(ProcessLookupError):
            self.kill(signal.SIGKILL)
        return GuestError(f"the guest was killed: it broke the protocol ({what})", invalid=False)

    def _hang_up(self) -> None:
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel)
            self._channel.close()
            self._news.set()
