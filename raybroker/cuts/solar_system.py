"""Known moving objects."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from raybroker.step import cut


@cut
def not_moving(ss_object_id: pa.Array) -> pa.Array:
    """The survey has matched the alert with no known asteroid or comet."""
    return pc.is_null(ss_object_id)
