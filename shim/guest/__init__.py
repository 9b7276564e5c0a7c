"""The guest: cloned from the shim for one container, it becomes the wasm program."""
