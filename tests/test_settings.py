from pathlib import Path

import pytest

from raybroker import settings
from raybroker.errors import SettingsError

FILE = """
[archive]
root = "data"
[surveys.ztf]
servers = "kafka:9092"
kafka = { "fetch.min.bytes" = 1, "sasl.password" = "${SECRET}" }
[steps]
on = ["real", "basic"]
[steps.real]
min_rb = 0.65
[models.transient]
classes = ["real", "bogus"]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECRET", "word")
    path = tmp_path / "raybroker.toml"
    path.write_text(FILE)
    return path


def test_a_file_becomes_a_typed_tree_with_absolute_paths(file: Path) -> None:
    read = settings.load(file)
    assert read.archive.root == file.parent / "data"
    assert read.steps.paths == [file.parent / "steps"]
    assert read.steps.of("real") == {"min_rb": 0.65}
    assert read.models["transient"].classes == ["real", "bogus"]
    assert read.models["transient"].members == ["softmax", "naive_bayes", "window"]


def test_secrets_come_from_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.load(file).surveys["ztf"].kafka == {"fetch.min.bytes": "1", "sasl.password": "word"}
    monkeypatch.delenv("SECRET")
    with pytest.raises(
        SettingsError, match=r"surveys.ztf.kafka.sasl.password: the environment variable SECRET"
    ):
        settings.load(file)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"turn": {"secods": 2}}, "turn.secods = 2: there is no such setting (did you mean 'seconds'?)"),
        ({"turn": {"seconds": -1}}, "turn.seconds = -1: Input should be greater than 0"),
        ({"serveys": {}}, "serveys = {}: there is no such setting (did you mean 'surveys'?)"),
        ({"surveys": {"ztf": {"topcs": []}}}, "(did you mean 'topics'?)"),
        ({"surveys": {"atlas": {}}}, "Input should be 'ztf', 'rubin' or 'fink'"),
        (
            {"models": {"m": {"classes": ["a"]}}},
            "models.m.classes = ['a']: List should have at least 2 items",
        ),
        (
            {"models": {"m": {"classes": ["a", "a"]}}},
            "models.m.classes: classes must differ by more than case",
        ),
        (
            {"models": {"x": {"classes": ["a", "b"]}}, "filters": {"x": {"where": "ra > 1"}}},
            "every column has one name",
        ),
    ],
)
def test_a_wrong_setting_names_key_value_rule_and_the_nearest_key(tree: dict, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        settings.parse(tree)
    assert said in str(error.value)


def test_a_missing_or_broken_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="raybroker init ztf"):
        settings.load(tmp_path / "raybroker.toml")
    (tmp_path / "raybroker.toml").write_text("[archive\n")
    with pytest.raises(SettingsError, match="not valid TOML"):
        settings.load(tmp_path / "raybroker.toml")


def test_tokens_name_their_owners() -> None:
    assert settings.tokens({"RAYBROKER_TOKENS": "ann:abc, bo:def"}) == {"abc": "ann", "def": "bo"}
    assert settings.tokens({}) == {}
    with pytest.raises(SettingsError, match="'ann' has no token"):
        settings.tokens({"RAYBROKER_TOKENS": "ann"})
