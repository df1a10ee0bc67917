"""Small forests: what these tests ask does not hang on the number of trees."""

from __future__ import annotations

import pytest

from raybroker.protocols import models


@pytest.fixture(autouse=True, scope="package")
def small_forests():
    patch = pytest.MonkeyPatch()
    patch.setattr(models, "TREES", 10)
    yield
    patch.undo()
