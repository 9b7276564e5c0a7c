"""The node's own settings, `/etc/pywasm/config.toml`. Runs in: shim.

A node without the file has the defaults. One with a mistake in it starts no container before that
is mended: what an administrator wrote down must not be ignored.
"""

from typing import Annotated, Any, Final

import msgspec

from shim.engines import flaws, select
from shim.engines.base import ModuleError
from shim.guest.annotations import Forbidden

_LIMIT: Final = 1 << 20  # bytes


class ConfigError(Exception):
    """The file cannot be used; the message names it and the culprit in one line."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be in the file."""

    engine: str = ""
    """The engine that is tried first for containers that name none."""
    unsafe_engines: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()
    """Engines that a container may demand even for a module that they are known to get wrong."""
    merge_pages: bool = False
    """Whether the kernel may merge equal pages of shims and guests, where KSM runs."""
    forbid: tuple[Forbidden, ...] = ()
    """What no container may ask for by its annotations."""


def read(path: str) -> Config:
    """Return the settings of the node. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            text = file.read(_LIMIT)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        config = msgspec.toml.decode(text, type=Config, dec_hook=_forbidden)
        for name in filter(None, (config.engine, *config.unsafe_engines)):
            select(name)
    except (msgspec.DecodeError, ModuleError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def preferred(config: Config, runtime: str) -> str:
    """Return the engine that is tried first; `runtime` is that of the runtime's options, or "".

    Raises ConfigError for one that is not safe, unless the node allows it.
    """
    engine = runtime or config.engine
    if engine in flaws.UNSAFE and engine not in config.unsafe_engines:
        reason = flaws.UNSAFE[engine]
        raise ConfigError(f"engine {engine!r}: {reason}; unsafe_engines of the node may allow it")
    return engine


def _forbidden(_type: type, text: Any) -> Forbidden:
    if not isinstance(text, str):
        raise ValueError(f"Expected `str`, got {text!r}")
    return Forbidden(text)
