"""Protobuf messages of every wire the project speaks, generated from the .proto files next to them.

Library: imported by any process that talks to containerd. `scripts/proto` regenerates the modules.

In containerd a type URL is the bare message name (`containerd.events.TaskExit`). `Any.Pack` always
puts a prefix and a slash before it, so fill in `type_url` and `value` by hand.
"""
