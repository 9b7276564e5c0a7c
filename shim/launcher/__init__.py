"""The launcher: what containerd executes for every `start` and `delete`; it asks the zygote."""
