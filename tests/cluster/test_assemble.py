from typing import Any

import pytest

from raybroker.cluster import assemble
from raybroker.errors import SettingsError
from raybroker.settings import parse


def with_raw(raw: dict[str, list[str]], classes: list[str]) -> Any:
    model = {"classes": ["yes", "no"], "raw": raw, "members": ["naive_bayes"]}
    return parse({"labels": {"classes": classes}, "models": {"real": model}})


def test_a_raw_label_that_nobody_can_give_is_said_before_anything_starts() -> None:
    assemble.check(with_raw({"yes": ["agn"], "no": ["bogus"]}, ["agn", "bogus", "comet"]))
    with pytest.raises(
        SettingsError, match=r"models.real.raw.no: no raw label 'bogsu' \(did you mean 'bogus'\?\)"
    ):
        assemble.check(with_raw({"yes": ["agn"], "no": ["bogsu"]}, ["agn", "bogus"]))
    with pytest.raises(SettingsError, match="no raw label 'agn'"):
        assemble.check(with_raw({"yes": ["agn"]}, []))


def test_a_raw_label_means_one_class() -> None:
    with pytest.raises(SettingsError, match="'agn' means both 'yes' and 'no'"):
        assemble.check(with_raw({"yes": ["agn"], "no": ["bogus", "agn"]}, ["agn", "bogus"]))
