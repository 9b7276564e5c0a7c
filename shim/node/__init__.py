"""`pywasm`, the command for people who look after a node.

Runs in: a process of its own, whenever somebody calls it. No container needs it.
"""
