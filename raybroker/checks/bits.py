"""What all checks share: columns that are the same bit for bit, and errors that name the rule that was checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SEED = 20_260_101


def same_bits(one: pa.Array, other: pa.Array) -> bool:
    """Whether two columns hold the same type, the same nulls and, bit for bit, the same values (NaN and −0 too)."""
    if one.type != other.type or len(one) != len(other) or not one.is_null().equals(other.is_null()):
        return False
    if pa.types.is_struct(one.type):
        names = [field.name for field in one.type]
        return all(
            same_bits(pc.struct_field(one, [i]), pc.struct_field(other, [i])) for i in range(len(names))
        )
    if pa.types.is_list(one.type):
        lengths = pc.list_value_length(one).equals(pc.list_value_length(other))
        return lengths and same_bits(one.flatten(), other.flatten())
    if pa.types.is_floating(one.type):
        return np.array_equal(_bits(one), _bits(other))
    return bool(one.equals(other))


def _bits(column: pa.Array) -> Any:
    numbers = column.drop_null().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(numbers).view(f"u{numbers.itemsize}")


@contextmanager
def raising(who: str, rule: str) -> Iterator[None]:
    """Any error inside becomes an `AssertionError` that names the rule."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(
            f"{who} raises where a rule is checked: {rule}: {type(error).__name__}: {error}"
        ) from error
