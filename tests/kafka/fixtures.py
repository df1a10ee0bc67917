"""The fixture `kafka`: a real broker for the whole session, or a skip that says why (in CI: a failure)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kafka.launcher import KafkaServer, available


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """A running Kafka: `kafka.servers`, `kafka.topic(partitions) -> name`, `kafka.restart()`."""
    reason = available()
    if reason and os.environ.get("CI"):
        pytest.fail(f"the tests against a real Kafka must run in CI: {reason}")
    if reason:
        pytest.skip(reason)
    with KafkaServer() as server:
        yield server
