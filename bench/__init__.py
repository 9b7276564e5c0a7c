"""Measurements of the shim against the reference shim and runc, and the demo."""
