"""The `io` that the launcher's interpreter finds: the C module, without abstract base classes.

See `encodings` beside it. Runs in: launcher.
"""

from _io import *  # noqa: F403
from _io import TextIOWrapper, open  # noqa: F401
