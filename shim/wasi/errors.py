"""How an operation fails, in the words of no dialect (library; runs in the guest).

With an OSError whose number is Linux's, or with `NotCapable`; each dialect says either in its own
way.
"""

from __future__ import annotations

import os


class NotCapable(Exception):
    """It takes what was not granted: a way out of a directory, a right, or the network."""


def failure(number: int) -> OSError:
    """Return an exception for an error number of Linux's."""
    return OSError(number, os.strerror(number))
