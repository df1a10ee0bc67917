"""JSON as everybody reads it."""

from __future__ import annotations

import datetime
import math

import numpy as np

from raybroker.service.messages import clean


def test_what_json_cannot_say_is_null() -> None:
    assert clean({"a": math.nan, "b": [math.inf, -math.inf, 1.5]}) == {"a": None, "b": [None, None, 1.5]}
    assert clean(np.float32("nan")) is None


def test_integers_that_javascript_cannot_hold_are_strings() -> None:
    assert clean([2**53, 2**53 + 1, -(2**60), True, np.int64(2**60)]) == [
        2**53,
        str(2**53 + 1),
        str(-(2**60)),
        True,
        str(2**60),
    ]


def test_times_are_iso_and_bytes_are_left_out() -> None:
    when = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    assert clean({"when": when, "raw": b"x"}) == {"when": "2026-01-02T00:00:00+00:00"}
