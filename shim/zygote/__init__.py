"""The zygote: one per node, with every library imported; it forks the shims."""
