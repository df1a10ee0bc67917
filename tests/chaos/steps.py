"""A step that does harm when told to, written into the run's folder of steps: see `System.order`.

An order is a file: whoever renames it first takes it. It is taken by a worker in the middle of a turn: its packets are
polled and stored as a segment, and nothing is committed yet.
"""

MISCHIEF = """
import os
import signal
from pathlib import Path

from raybroker import alerts
from raybroker.step import enrich

ORDERS = Path("{orders}")


def _taken(order):
    try:
        os.rename(ORDERS / order, ORDERS / f"{{order}}.{{os.getpid()}}")
    except OSError:
        return False
    return True


@enrich(gives="float64")
def mischief(alert_id, ra):
    if b"WorkerActor" in Path("/proc/self/cmdline").read_bytes():
        if _taken("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if _taken("stop"):
            os.kill(os.getpid(), signal.SIGSTOP)
        killers = ORDERS / "killers"
        if killers.exists() and set(killers.read_text().split()) & set(alert_id.to_pylist()):
            os._exit(1)
    return alerts.values(ra)
"""
