import io

import fastavro
import pyarrow as pa

from raybroker.stream import outgoing

ROWS = pa.table(
    {
        "alert_id": ["ztf:1", "ztf:2", "ztf:3"],
        "ra": [10.0, 20.0, None],
        "history": [[{"mjd": 1.5, "band": "g"}], [], None],
        "sn": pa.array([{"SN Ia": 0.5}] * 3, pa.struct([("SN Ia", pa.float32())])),
        "cutouts": [1, 2, 3],
        "young": [True, None, True],
        "bright": [False, False, False],
    }
)


def test_rows_go_to_the_topics_of_the_filters_they_pass() -> None:
    outputs = outgoing.route(ROWS, {"young": "raybroker.young", "bright": "raybroker.bright"})
    assert {topic: [packet.key for packet in found] for topic, found in outputs.items()} == {
        "raybroker.young": [b"ztf:1", b"ztf:3"]
    }


def test_any_avro_reader_opens_an_output() -> None:
    packet = outgoing.packets(ROWS)[0]
    row = next(fastavro.reader(io.BytesIO(packet.value)))
    assert row["alert_id"] == "ztf:1"
    assert row["history"] == [{"mjd": 1.5, "band": "g"}]
    assert row["sn"] == {"SN_Ia": 0.5}
    assert "cutouts" not in row
