"""How a component fails at run time (library; raised in the guest)."""

from __future__ import annotations


class Trap(Exception):
    """The component broke a rule of the canonical ABI; the message says which."""
