"""The real astroquery client against a small local server that speaks the protocol of the CDS X-match service."""

from __future__ import annotations

import io
import logging
import threading
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table

from raybroker import checks
from raybroker.crossmatch import cds

SIMBAD = Table(
    {
        "main_id": ["M  31", "NGC 221", "Star A", "Star B"],
        "ra": [10.684708, 10.674300, 50.0, 50.0],
        "dec": [41.268750, 40.865287, -20.0, -20.0 + 1 / 3600],
        "main_type": ["AGN", "Galaxy", "Star", "Star"],
    }
)


class Service(BaseHTTPRequestHandler):
    """POST of a form with a CSV file `cat1`, answered by a VOTable of all matches."""

    def do_POST(self):
        asked = self.form(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        if self.server.silence:
            self.server.silence.wait()
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.answer(asked) if self.server.status == 200 else b"Mauvaise requete")

    def form(self, body):
        head = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
        parts = message_from_bytes(head + body).get_payload()
        fields = {
            p.get_param("name", header="content-disposition"): p.get_payload(decode=True) for p in parts
        }
        return {name: value.decode() for name, value in fields.items()}

    def answer(self, asked):
        sent = Table.read(asked["cat1"], format="ascii.csv")
        places = SkyCoord(sent[asked["colRA1"]], sent[asked["colDec1"]], unit="deg")
        there = SkyCoord(SIMBAD["ra"], SIMBAD["dec"], unit="deg")
        apart = places[:, None].separation(there[None]).arcsec
        rows, found = np.nonzero(apart <= float(asked["distMaxArcsec"]))
        joined = Table({"angDist": apart[rows, found], **{n: sent[n][rows] for n in sent.colnames}})
        for name in SIMBAD.colnames:
            joined[name] = SIMBAD[name][found]
        text = io.BytesIO()
        joined.write(text, format="votable")
        return text.getvalue()

    def log_message(self, *_):
        pass


@pytest.fixture
def service():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.asked, server.status, server.silence = [], 200, None
    server.url = f"http://127.0.0.1:{server.server_port}/xmatch/api/v1/sync"
    server.handle_error = lambda *_: None  # a client that gave up is no news
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


NOTHING = {"main_id": None, "main_type": None, "distance": None}
RA = [10.684708, 200.0, 10.674300, None, 50.0]
DEC = [41.268750 + 0.5 / 3600, 10.0, 40.865287, 3.0, -20.0 + 0.2 / 3600]


def run(step, ra=RA, dec=DEC):
    columns = {"ra": pa.array(ra, pa.float64()), "dec": pa.array(dec, pa.float64())}
    return step.run(columns, len(ra)).to_pylist()


def test_each_alert_gets_its_nearest_object(service):
    m31, nothing, m32, unknown, star = run(cds.step(url=service.url))
    assert (m31["main_id"], m31["main_type"]) == ("M  31", "AGN")
    assert m31["distance"] == pytest.approx(0.5, abs=1e-3)
    assert nothing == NOTHING
    assert m32["main_id"] == "NGC 221"
    assert unknown == NOTHING
    assert star["main_id"] == "Star A"


def test_a_batch_is_one_request_for_simbad_within_the_radius(service):
    run(cds.step(url=service.url, radius_arcsec=2.5))
    [asked] = service.asked
    assert (asked["request"], asked["cat2"]) == ("xmatch", "simbad")
    assert float(asked["distMaxArcsec"]) == 2.5
    assert len(asked["cat1"].split()) == 5


def test_one_alert_alone_is_sent_as_two(service):
    assert run(cds.step(url=service.url), RA[:1], DEC[:1])[0]["main_id"] == "M  31"
    assert len(service.asked[0]["cat1"].split()) == 3


def test_nothing_is_asked_where_no_position_is_known(service):
    run(cds.step(url=service.url), [None], [1.0])
    run(cds.step(url=service.url), [], [])
    assert service.asked == []


def test_an_error_gives_nulls_and_a_rest(service, caplog):
    service.status = 500
    step = cds.step(url=service.url)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert all(one == NOTHING for one in run(step))
    assert len(service.asked) == 1
    assert (cds.fuse(service.url).failures, cds.fuse(service.url).skipped) == (1, 4)
    assert len(caplog.records) == 1


def test_silence_ends_with_the_time_out(service):
    service.silence = threading.Event()
    try:
        assert all(one == NOTHING for one in run(cds.step(url=service.url, timeout_seconds=0.2)))
    finally:
        service.silence.set()
    assert cds.fuse(service.url).failures == 1


def test_no_service_at_all_gives_nulls():
    assert all(one == NOTHING for one in run(cds.step(url="http://127.0.0.1:9/")))


def test_after_the_rest_it_asks_again_and_logs_once_a_minute(caplog):
    now = [0.0]
    fuse = cds.Fuse("SIMBAD", rest=30, clock=lambda: now[0])

    def fail():
        raise TimeoutError

    with caplog.at_level(logging.WARNING):
        for now[0] in range(0, 120, 10):
            assert fuse.call(fail, instead="nothing") == "nothing"
    assert (fuse.failures, fuse.skipped) == (4, 8)
    assert len(caplog.records) == 2
    now[0] = 130.0
    assert fuse.call(lambda: "matches", instead="nothing") == "matches"


def test_it_keeps_the_rules_for_steps(service):
    batch = pa.RecordBatch.from_pydict({"ra": pa.array(RA), "dec": pa.array(DEC)})
    checks.check_step(cds.step(url=service.url), batch)
