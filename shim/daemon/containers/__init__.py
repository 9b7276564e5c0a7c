"""Containers and their processes, wasm and native, as the shim sees them."""
