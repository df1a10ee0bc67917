"""raybroker: an alert broker that learns."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("raybroker")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """`raybroker.evaluate`, whose imports take seconds, on first use."""
    if name != "evaluate":
        raise AttributeError(f"module 'raybroker' has no attribute '{name}'")
    from raybroker.protocols.evaluate import evaluate

    return evaluate
