import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raybroker import alerts
from raybroker.errors import SettingsError
from raybroker.pipeline import Pipeline, plan
from raybroker.step import Step, cut, enrich, filter

OWN = pa.struct([("rb", pa.float32())])
SCHEMA = alerts.schema("ztf", OWN)


def batch(rb: list[float | None]) -> pa.RecordBatch:
    n = len(rb)
    columns = {name: pa.nulls(n, SCHEMA.field(name).type) for name in SCHEMA.names}
    columns["ra"] = pa.array(np.arange(n, dtype=float))
    columns["ztf"] = pa.array([{"rb": value} for value in rb], OWN)
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=SCHEMA)


@cut
def real(ztf, *, min_rb=0.5):
    return pc.greater_equal(pc.struct_field(ztf, "rb"), min_rb)


@enrich(gives={"value": "float64"})
def doubled(ra):
    return {"value": alerts.values(ra) * 2}


@enrich(gives="float64")
def tripled(doubled):
    return alerts.values(doubled, "value") * 1.5


@enrich(gives="float64")
def fragile(ra):
    if 3.0 in alerts.values(ra):
        raise ZeroDivisionError("three")
    return alerts.values(ra)


@filter
def bright(tripled):
    return pc.greater(tripled, 5)


@enrich(gives="float64")
def rubin_only(rubin):
    return alerts.values(rubin, "diaSource.snr")


def pipeline(*steps: Step) -> Pipeline:
    return plan(steps, SCHEMA, "ztf")


def test_steps_run_after_those_they_need_and_cuts_first() -> None:
    made = pipeline(bright, tripled, doubled, real)
    assert [step.name for step in made.steps] == ["real", "doubled", "tripled", "bright"]
    outcome = made.run(batch([0.9, 0.1, 0.8]))
    assert outcome.kept["tripled"].to_pylist() == [0.0, 6.0]
    assert outcome.kept["bright"].to_pylist() == [False, True]
    assert outcome.kept_rows.tolist() == [0, 2]
    assert outcome.rejected_by == {1: "real"}
    assert set(outcome.seconds) == {"real", "doubled", "tripled", "bright"}


def test_a_cut_that_does_not_know_keeps_the_alert() -> None:
    assert pipeline(real).run(batch([None, 0.1])).rejected_by == {1: "real"}


def test_the_first_cut_that_drops_an_alert_names_the_rejection() -> None:
    other = cut(lambda ra: pc.greater(ra, 0.5), name="other")
    assert pipeline(real, other).run(batch([0.1, 0.1, 0.9])).rejected_by == {0: "real", 1: "real"}


def test_a_failing_step_leaves_null_in_the_culprit_alone() -> None:
    outcome = pipeline(fragile, real).run(batch([0.9, 0.1, 0.9, 0.9, 0.9]))
    assert outcome.kept["fragile"].to_pylist() == [0.0, 2.0, None, 4.0]
    assert [(f.row, f.step, f.error) for f in outcome.failures] == [
        (3, "fragile", "ZeroDivisionError: three")
    ]


def test_a_failing_cut_keeps_its_alert_and_says_so() -> None:
    @cut
    def picky(ra):
        raise RuntimeError("no")

    outcome = pipeline(picky).run(batch([0.9, 0.9]))
    assert outcome.rejected_by == {}
    assert [failure.row for failure in outcome.failures] == [0, 1]


def test_an_empty_batch_gives_empty_columns_of_the_same_schema() -> None:
    made = pipeline(real, doubled, bright, tripled)
    assert made.run(batch([])).kept.schema == made.columns
    assert made.run(batch([0.1])).kept.num_rows == 0


def test_cutout_bytes_are_given_to_the_step_that_names_them() -> None:
    @enrich(gives="int64")
    def size(cutout_science):
        return pc.binary_length(cutout_science)

    place = {"offset": 2, "length": 3}
    cutouts = pa.array([{"science": place}, {"science": None}], SCHEMA.field("cutouts").type)
    given = batch([0.9, 0.9]).set_column(SCHEMA.get_field_index("cutouts"), "cutouts", cutouts)
    assert pipeline(size).run(given, [b"0123456", b"012"]).kept["size"].to_pylist() == [3, None]


def test_another_surveys_steps_and_what_needs_them_are_left_out() -> None:
    dependent = enrich("float64", name="dependent")(lambda rubin_only: rubin_only)
    assert [step.name for step in pipeline(doubled, rubin_only, dependent).steps] == ["doubled"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            [enrich("float64", name="a")(lambda histroy: histroy)],
            "needs 'histroy'; no column or step gives it (did you mean 'history'?)",
        ),
        ([doubled, doubled], "'doubled' names two columns"),
        ([enrich("float64", name="ra")(lambda dec: dec)], "'ra' names two columns"),
        ([enrich("float64", name="a")(lambda b: b), enrich("float64", name="b")(lambda a: a)], "circle"),
        ([doubled, cut(lambda doubled: doubled, name="late")], "cuts run first"),
    ],
)
def test_a_wrong_plan_says_what_to_mend(steps: list[Step], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        pipeline(*steps)
    assert said in str(error.value)


def test_the_digest_changes_with_versions_and_settings_and_nothing_else() -> None:
    digest = pipeline(real, doubled).digest
    assert pipeline(real, doubled).digest == digest
    assert pipeline(real.with_settings({"min_rb": 0.6}), doubled).digest != digest
    assert (
        pipeline(real, enrich({"value": "float64"}, name="doubled", version=2)(lambda ra: ra)).digest
        != digest
    )


def test_an_unknown_setting_of_a_step_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"steps.real.min_rd: .* \(did you mean 'min_rb'\?\)"):
        real.with_settings({"min_rd": 1})
