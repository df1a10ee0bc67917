"""Every exception that raybroker raises on purpose.

RaybrokerError
├── SettingsError       a setting, a step's needs or a plan is wrong: said before anything runs
├── PacketError         one packet cannot be read: it becomes a dead row, the rest goes on
├── StreamError         Kafka (or another source) is not as it must be: unreachable, shorter than the archive
├── ArchiveError        the archive refuses: another writer was first, a schema differs, bytes are missing
│   └── FencedError     this worker no longer owns the partition: drop the turn and be assigned again
├── AwayError           what a turn writes to (the archive, the output Kafka) cannot be used now: try it again later
└── UnknownError        something was asked for by a name or an id that nothing knows (HTTP: 404)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RaybrokerError(Exception):
    """The root: whoever catches it catches all that raybroker raises on purpose."""


class SettingsError(RaybrokerError):
    """A setting, a step's needs or a plan is wrong."""


class PacketError(RaybrokerError):
    """One packet cannot be read; the message is the reason that its dead row shows."""


class StreamError(RaybrokerError):
    """A source or sink is not as it must be."""


class ArchiveError(RaybrokerError):
    """The archive refuses to write or cannot find what it should hold."""


class FencedError(ArchiveError):
    """Another worker owns this partition now."""


class AwayError(RaybrokerError):
    """What a turn writes to cannot be used now; nothing is wrong with the packets."""


class UnknownError(RaybrokerError):
    """Nothing is known by this name or id."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean 'history'?)' for the nearest known name, or '' where none is near.

    >>> did_you_mean("histroy", ["history", "mjd"])
    " (did you mean 'history'?)"
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
