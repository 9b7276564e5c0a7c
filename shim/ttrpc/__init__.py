"""ttrpc: gRPC's calls without HTTP/2, as containerd and its shims speak it over a unix socket.

Library, for the shim (server, and client of containerd's events) and for tests. It knows nothing
of containers and imports nothing of this project but `proto/` and `shim.linux.fleeting`.

From the wire up: `frames` cuts bytes into frames, `protocol` knows the rules of streams, and
neither does any I/O; `server` and `client` put an asyncio socket under them. The specification is
PROTOCOL.md of github.com/containerd/ttrpc; where it is silent, its Go implementation decides.
"""

from shim.linux.peer import Peer
from shim.ttrpc.client import Client
from shim.ttrpc.server import Context, Method, Server
from shim.ttrpc.status import Code, RpcError

__all__ = ["Client", "Code", "Context", "Method", "Peer", "RpcError", "Server"]
