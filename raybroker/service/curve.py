"""An object's light curve from the histories of its alerts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker.alerts import KINDS, LIMIT, LightCurves

SAME = 1e-5  # days: two packets may round one exposure's time differently, by less than a second


def merged(history: pa.ChunkedArray) -> pa.Table:
    """All points of these histories, ascending in time, each (time, band, kind) once: the last history's.

    A forced measurement does not hide a detection of the same exposure; a limit is left out where one was detected.
    """
    points = LightCurves.of(
        pa.concat_arrays(history.chunks) if history.num_chunks else pa.array([], history.type)
    )
    table = pa.Table.from_struct_array(points.history)
    if not len(table):
        return table
    exposure = _exposures(points)
    kind = points.codes("kind", KINDS)
    newest_first = np.arange(len(table))[::-1]
    _, first = np.unique((exposure * len(KINDS) + kind)[newest_first], return_index=True)
    rows = np.sort(newest_first[first])
    limit = KINDS.index(LIMIT)
    hidden = (kind[rows] == limit) & np.isin(exposure[rows], exposure[kind == KINDS.index("detection")])
    return table.take(pa.array(rows[~hidden])).sort_by([("mjd", "ascending"), ("band", "ascending")])


def _exposures(points: LightCurves) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A number per point, equal where time and band are."""
    bands = pc.unique(pc.struct_field(points.history, "band")).to_pylist()
    time = np.rint(points.numbers("mjd") / SAME).astype(np.int64)
    return np.asarray(time * (len(bands) + 1) + points.codes("band", [b for b in bands if b]) + 1)
