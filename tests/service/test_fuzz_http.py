"""Whatever is asked, as the OpenAPI description allows it or not: an answer of a kind that it names, never a 500."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [  # a status that is not described, as 500, is refused; 503 is described
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
ENDLESS = "/queries/events"  # server-sent events go on until the reader leaves
FUZZED = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def operations(desk_to_write: Any) -> list[Any]:
    described = schemathesis.openapi.from_asgi("/openapi.json", desk_to_write.app)
    found = [result.ok() for result in described.get_all_operations()]
    return [operation for operation in found if operation.path != ENDLESS]


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer right"}, {}], ids=["token", "no token"])
@pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as said", "not so"]
)
def test_every_answer_is_one_that_was_described(
    operations: list[Any], headers: dict[str, str], mode: GenerationMode
) -> None:
    assert len(operations) > 15
    wrong = [error for operation in operations if (error := fuzz(operation, headers, mode))]
    assert not wrong, "\n\n".join(wrong)


def fuzz(operation: Any, headers: dict[str, str], mode: GenerationMode) -> str:
    """What went wrong with one operation; '' where nothing did."""

    @FUZZED
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, headers=headers)

    try:
        ask()
    except (Exception, BaseExceptionGroup) as error:
        if "Unsatisfiable" in type(error).__name__:  # nothing that is not as said can be asked here
            return ""
        return f"{operation.method.upper()} {operation.path}: {error}"
    return ""
