"""The part of containerd's gRPC API that tests and the resident gRPC helper use.

Library, never imported by launcher, zygote, shim, guest or compiler.
"""
