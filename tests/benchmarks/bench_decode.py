"""How long decoding and encoding take per alert: `python tests/benchmarks/bench_decode.py [NIGHT.tar.gz ...]`."""

from __future__ import annotations

import argparse
import json
import os
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from raybroker import surveys
from raybroker.alerts import Packet

DATA = Path(os.environ.get("RAYBROKER_DATA", Path(__file__).parents[3] / "shared" / "data"))
NIGHTS = (
    "ztf/ztf_public_20181129.tar.gz",
    "ztf/ztf_selected_20231018.tar.gz",
    "rubin/lsst_v9_0_20250905.tar.gz",
)


def packets_of(path: Path, least: int) -> list[Packet]:
    """The packets of an archive, as often as it takes for one batch."""
    with tarfile.open(path) as archive:
        values = [archive.extractfile(item).read() for item in archive if item.isfile()]  # type: ignore[union-attr]
    return [Packet(values[n % len(values)], offset=n) for n in range(max(least, len(values)))]


def microseconds(call, packets: Sequence[object], repeats: int) -> float:  # type: ignore[no-untyped-def]
    """Of the fastest of several runs, per alert: the others were disturbed by neighbours."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return round(min(seconds) / len(packets) * 1e6, 1)


def measure(path: Path, batch: int, repeats: int) -> dict[str, object]:
    survey = surveys.load("rubin" if path.name.startswith("lsst") else "ztf")
    packets = packets_of(path, batch)[:batch]
    decoded = survey.decode(packets)
    return {
        "night": path.name,
        "batch": len(packets),
        "decode_us": microseconds(lambda: survey.decode(packets), packets, repeats),
        "encode_us": microseconds(lambda: survey.encode(decoded.batch), packets, 3),
        "bytes": sum(len(packet.value or b"") for packet in packets) // len(packets),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nights", nargs="*", type=Path, default=[DATA / night for night in NIGHTS])
    parser.add_argument("--batch", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    for night in options.nights:
        print(json.dumps(measure(night, options.batch, options.repeats)))


if __name__ == "__main__":
    main()
