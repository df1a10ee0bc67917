"""raybroker: an alert broker that learns."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("raybroker")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
