"""The sorted form of each catalogue, as a file of this machine: a step maps it into memory.

Beside an archive in a folder it is made in that folder, once. An archive in an object store keeps it as an object: a
machine that has the catalogue's own file sorts and uploads it and notes under the catalogue's name which version that
is; any other machine reads the note and fetches that version, once for all its workers.
"""

from __future__ import annotations

import json
from pathlib import Path

from raybroker.archive import store
from raybroker.crossmatch import local
from raybroker.errors import SettingsError
from raybroker.places import ObjectUrl
from raybroker.settings import CatalogueSettings, Settings

CACHE = Path("~/.cache/raybroker")


def sorted_file(settings: Settings, name: str) -> Path:
    """The sorted catalogue of this name; a SettingsError where neither its file nor an uploaded one is there."""
    own, root = settings.catalogues[name], settings.archive.root
    if isinstance(root, Path):
        if not own.file.exists():
            raise SettingsError(f"catalogues.{name}.file = '{own.file}': there is no such file")
        return local.prepared(own.file, root / "catalogues", ra=own.ra, dec=own.dec)
    cache = (settings.archive.cache or CACHE.expanduser()) / "catalogues"
    there = root / "catalogues"
    version = _uploaded(name, own, there, cache) if own.file.exists() else _noted(name, own, there)
    return store.fetch(there / version, cache / version)


def _uploaded(name: str, own: CatalogueSettings, there: ObjectUrl, cache: Path) -> str:
    made = local.prepared(own.file, cache, ra=own.ra, dec=own.dec)
    version = local.version_of(made)
    if not store.has(there / version):
        store.upload(made, there / version)
    note = json.dumps({**_asked(own), "version": version}).encode()
    if _read(there / f"{name}.json") != note:
        store.replace(there / f"{name}.json", note)
    return version


def _noted(name: str, own: CatalogueSettings, there: ObjectUrl) -> str:
    note = json.loads(_read(there / f"{name}.json") or b"{}")
    if {key: note.get(key) for key in _asked(own)} != _asked(own):
        raise SettingsError(
            f"catalogues.{name}.file = '{own.file}': there is no such file, and none of that name was uploaded to "
            f"{there}; `raybroker check` on the machine that has it does so"
        )
    return str(note["version"])


def _asked(own: CatalogueSettings) -> dict[str, str]:
    return {"file": own.file.name, "ra": own.ra, "dec": own.dec}


def _read(place: ObjectUrl) -> bytes:
    try:
        return store.read(place)
    except FileNotFoundError:
        return b""
