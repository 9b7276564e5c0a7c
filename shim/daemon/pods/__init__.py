"""Pods that the shim holds itself: their spec, their files, and a record for who cleans up."""
