"""WASI, once for all its dialects (library; runs in the guest).

What preview 1, 0.2 and 0.3 share is here, and knows no ABI: what a program was granted, descriptors
and what may be done with them, where paths lead, waiting, sockets, names. It raises OSError with
Linux's numbers, or `NotCapable`. A dialect is a folder below: `preview1` turns the outcome into
error numbers and bytes in memory, `p2` into results and resources.
"""
