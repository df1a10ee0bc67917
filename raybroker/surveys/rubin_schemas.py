"""Where a Rubin schema id's schema comes from: a folder, a Schema Registry, the `lsst.alert.packet` package, or here."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import httpx

from raybroker.errors import PacketError, StreamError
from raybroker.surveys import fields

TIMEOUT = 10.0  # seconds
OWN_ID = 900


def own_schema() -> dict[str, Any]:
    """Rubin's schema 9.0 by our own list of its fields: the same bytes as written with Rubin's definition."""
    source = fields.record("diaSource", fields.RUBIN_SOURCE_9_0)
    forced = fields.record("diaForcedSource", fields.RUBIN_FORCED_9_0)
    parts: dict[str, Any] = fields.read("diaSourceId:long observation_reason:string? target_name:string?")
    parts |= {
        "diaSource": source,
        "prvDiaSources": ["null", {"type": "array", "items": "diaSource"}],
        "prvDiaForcedSources": ["null", {"type": "array", "items": forced}],
        "diaObject": ["null", fields.record("diaObject", fields.RUBIN_OBJECT_9_0)],
        "ssSource": ["null", fields.record("ssSource", fields.RUBIN_MOVING_9_0)],
        "MPCORB": ["null", fields.record("MPCORB", fields.RUBIN_ORBIT_9_0)],
    }
    parts |= dict.fromkeys(("cutoutDifference", "cutoutScience", "cutoutTemplate"), "bytes?")
    return {**fields.record("alert", parts), "namespace": "lsst.v9_0"}


class Schemas:
    """Schemas by id, each found once and then kept for ever: an id never changes its meaning."""

    def __init__(self, folder: Path | None = None, registry: str | None = None):
        self._folder, self._registry = folder, registry
        self._known: dict[int, bytes] = {}
        self._unknown: dict[int, str] = {}

    def ask_again(self) -> None:
        """Forget which ids nobody knew: a registry may have learned them. Once per batch, not per packet."""
        self._unknown.clear()

    def get(self, schema_id: int) -> bytes:
        """The schema as one JSON document; PacketError where nobody knows it, StreamError where nobody can be asked."""
        if schema_id in self._unknown:
            raise PacketError(self._unknown[schema_id])
        if schema_id not in self._known:
            self._known[schema_id] = self._find(schema_id)
        return self._known[schema_id]

    def _find(self, schema_id: int) -> bytes:
        tried = []
        for folder in filter(None, (self._folder, _package_folder())):
            found = _from_folder(folder, schema_id)
            if found is not None:
                return found
            tried.append(f"no schema {schema_id // 100}.{schema_id % 100} in {folder}")
        if self._registry:
            found = _from_registry(self._registry, schema_id)
            if found is not None:
                return found
            tried.append(f"the registry {self._registry} does not have it")
        if schema_id == OWN_ID:
            return json.dumps(own_schema()).encode()
        reason = self._unknown[schema_id] = f"Rubin schema id {schema_id} is not known: {_why(tried)}"
        raise PacketError(reason)


def _why(tried: list[str]) -> str:
    return "; ".join(tried) or "neither a folder of schemas nor a registry is set, and only 900 is built in"


def _package_folder() -> Path | None:
    try:
        package = importlib.import_module("lsst.alert.packet")
    except ImportError:
        return None
    return Path(package.get_schema_root())


def _from_folder(folder: Path, schema_id: int) -> bytes | None:
    """All `.avsc` files of the version's folder as one document."""
    files = sorted((folder / str(schema_id // 100) / str(schema_id % 100)).glob("*.avsc"))
    records = [json.loads(file.read_text()) for file in files]
    named = {f"{record['namespace']}.{record['name']}": record for record in records}
    roots = [record for record in records if record["name"] == "alert"]
    return json.dumps(_inlined(roots[0], named)).encode() if roots else None


def _inlined(schema: Any, named: dict[str, Any]) -> Any:
    """The schema with each name in `named` replaced by its definition where it is first met; empties `named`."""
    if isinstance(schema, str):
        return _inlined(named.pop(schema), named) if schema in named else schema
    if isinstance(schema, list):
        return [_inlined(branch, named) for branch in schema]
    if schema["type"] == "record":
        named.pop(f"{schema.get('namespace')}.{schema['name']}", None)
        items = [{**item, "type": _inlined(item["type"], named)} for item in schema["fields"]]
        return {**schema, "fields": items}
    return {k: _inlined(v, named) if k in ("items", "values", "type") else v for k, v in schema.items()}


def _from_registry(url: str, schema_id: int) -> bytes | None:
    try:
        answer = httpx.get(
            f"{url.rstrip('/')}/schemas/ids/{schema_id}", timeout=TIMEOUT, follow_redirects=True
        )
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        return str(answer.raise_for_status().json()["schema"]).encode()
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise StreamError(
            f"the schema registry {url} cannot give Rubin schema {schema_id}: {str(error) or type(error).__name__}; "
            "set surveys.rubin.schemas to a folder of .avsc files, or try again when it is back"
        ) from error
