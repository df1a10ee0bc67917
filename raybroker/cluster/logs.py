"""How the log is written: lines for people, or with `RAYBROKER_LOG_FORMAT=json` one JSON object per line.

Standard logging throughout: whoever embeds raybroker configures it as they like. `facts` of a record (topic, partition,
offsets, ...) become keys. Nothing heavy is imported: processes begin with this.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
from collections.abc import Mapping

from raybroker.errors import SettingsError

FORMAT, LEVEL = "RAYBROKER_LOG_FORMAT", "RAYBROKER_LOG"
FORMATS = ("text", "json")


class Json(logging.Formatter):
    """One object per line: time (UTC), level, logger, message, the record's facts, and the trace of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        told = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


def configure(level: str = "WARNING", environment: Mapping[str, str] = os.environ) -> None:
    """Log to stderr from `level` on; the environment may say another. As JSON, our own lines are told from INFO on.

    Where a process has handlers already, nothing changes. `SettingsError` for a format or level that is none.
    """
    form = environment.get(FORMAT, "text")
    if form not in FORMATS:
        raise SettingsError(f"{FORMAT} = {form!r}: one of {', '.join(FORMATS)} was expected")
    told = environment.get(LEVEL, level).upper()
    if told not in logging.getLevelNamesMapping():
        raise SettingsError(f"{LEVEL} = {told!r}: a level such as INFO or WARNING was expected")
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if form == "json" else logging.Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=told, handlers=[handler])
    if form == "json" and LEVEL not in environment:
        logging.getLogger("raybroker").setLevel(logging.INFO)
