"""The labelling page as a person uses it: real alerts, a real browser, and a model that learns meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.world import CLASSES, MODEL, System, Visit

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
GONE_AWAY = "ERR_INTERNET_DISCONNECTED"

Opens = Callable[..., Visit]

pytestmark = pytest.mark.timeout(240)


def labels(town: System, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = town.get("/labels", params={"model": MODEL, **params})["labels"]
    return found


def standing(town: System, name: str) -> list[str | None]:
    """What holds of an object now, "can't tell" as None, newest first."""
    return [one["label"] for one in labels(town) if one["object_id"] == f"ztf:{name}" and one["standing"]]


def asked(town: System) -> int:
    return int(town.get("/models")["models"][0]["open_queries"])


# Answers.


def test_twenty_alerts_are_labelled_by_keys_and_the_model_number_rises(town: System, visit: Opens) -> None:
    here = visit()
    here.object()
    before, first = town.snapshot(), here.text("#snapshot")
    here.picture("first")
    names = [here.answer("1a34"[i % 4]) for i in range(20)]
    here.sent()
    assert len(set(names)) == 20, "an object is asked once"
    said = {one["object_id"]: one["label"] for one in labels(town, who="maria")}
    assert [said[f"ztf:{name}"] for name in names] == [CLASSES[i % 4] for i in range(20)]
    town.wait(lambda: town.get("/models")["models"][0]["snapshot"]["labels"] == 20)
    assert town.snapshot() > before
    here.wait("(before) => document.getElementById('snapshot').textContent !== before", first)
    here.wait("Number(document.getElementById('tonight').textContent) === 20")
    assert here.page.locator("#recent li").count() == 12
    here.picture("twenty", full_page=True)
    curve = town.get(f"/models/{MODEL}/curve")["snapshots"]
    assert (curve[-1]["labels"], curve[-1]["number"]) == (20, town.snapshot())


def test_undo_brings_the_alert_back_and_another_answer_counts_alone(town: System, visit: Opens) -> None:
    here = visit()
    name = here.answer("1")
    here.press("u")
    here.wait("(name) => document.getElementById('object').textContent === name", name)
    here.sent()
    assert standing(town, name) == []
    assert here.answer("2") == name
    here.sent()
    assert standing(town, name) == ["AGN"]
    assert here.text("#last") == f"{name}: AGN"


def test_cant_tell_is_an_answer(town: System, visit: Opens) -> None:
    here = visit()
    name = here.answer("0")
    here.sent()
    assert standing(town, name) == [None]


def test_a_skipped_alert_is_not_shown_again_and_is_free_for_others(town: System, visit: Opens) -> None:
    here = visit()
    name = here.answer("s")
    assert here.object() != name
    held = {one["object_id"]: one["claimed"] for one in town.get("/queries")["queries"]}
    assert held.get(f"ztf:{name}") is None
    assert standing(town, name) == []


def test_when_all_is_skipped_the_page_says_so_and_shows_them_again(visit: Opens) -> None:
    here = visit()
    here.object()
    for _ in range(60):
        here.press("s")
        here.page.wait_for_timeout(50)
        here.wait("!document.body.classList.contains('old') || document.body.classList.contains('idle')")
        if "idle" in here.page.locator("body").get_attribute("class"):
            break
    assert "was skipped" in here.text("#nothing-why")
    here.picture("nothing-left")
    here.page.click("#again")
    assert here.object()


def test_a_comment_goes_with_the_answer(town: System, visit: Opens) -> None:
    here = visit()
    here.object()
    here.press("c")
    here.page.keyboard.type(
        "1 s blend, host 2\N{DOUBLE PRIME} east"
    )  # letters and digits are no answers here
    here.press("Enter")
    name = here.answer("1")
    here.sent()
    (found,) = [one for one in labels(town) if one["object_id"] == f"ztf:{name}"]
    assert (found["comment"], found["label"]) == ("1 s blend, host 2\N{DOUBLE PRIME} east", "supernova")
    assert here.page.input_value("#comment") == ""


def test_an_earlier_label_is_seen_again_revised_and_put_back(town: System, visit: Opens) -> None:
    here = visit()
    name, parked = here.answer("4"), here.object()
    here.sent()
    line = here.page.locator("#recent li:not(.gone) button", has_text=name)
    line.click()
    here.wait("(name) => document.getElementById('object').textContent === name", name)
    assert "You said “bogus”" in here.text("#reason")
    here.answer("3")
    here.sent()
    assert standing(town, name) == ["variable star"]
    assert here.object() == parked, "the question that was left comes back"
    here.press("u")
    here.wait("(name) => document.getElementById('object').textContent === name", name)
    here.sent()
    assert standing(town, name) == ["bogus"]


def test_answers_are_kept_while_the_server_is_away(town: System, visit: Opens) -> None:
    here = visit()
    here.forgiven = (GONE_AWAY,)
    here.object()
    here.page.wait_for_load_state("networkidle")
    here.page.context.set_offline(True)
    name = here.object()
    here.press("2")
    here.wait("document.getElementById('banner').textContent.includes('1 answer is kept here')")
    here.picture("offline")
    assert standing(town, name) == []
    here.page.context.set_offline(False)
    here.sent()
    assert standing(town, name) == ["AGN"]
    here.wait("document.getElementById('banner').hidden")


def test_where_there_are_raw_labels_these_are_offered_and_told_to_all_models(visit: Opens) -> None:
    here, told = visit(), []

    def models(route: Any) -> None:
        found = route.fetch().json()
        found["models"][0]["raw"] = ["real", "extragalactic", "bogus"]
        route.fulfill(json=found)

    def take(route: Any) -> None:
        told.append(route.request.post_data_json)
        route.fulfill(status=201, json={})

    here.object()
    here.page.route("**/models", models)
    here.page.route("**/labels", take)  # not of `?model=`
    here.page.reload()
    here.object()
    assert here.page.locator("#classes .class").all_inner_texts() == ["real", "extragalactic", "bogus"]
    here.answer("e")
    here.sent()
    assert [(one["label"], "model" in one) for one in told] == [("extragalactic", False)]


def test_a_link_opens_its_alert_asked_about_or_not(town: System, visit: Opens) -> None:
    here = visit()
    here.object()
    asked_about = town.get("/queries")["queries"][-1]
    here.page.goto(f"{town.url}/?alert={asked_about['alert_id']}")
    assert f"ztf:{here.object()}" == asked_about["object_id"]
    known = {query["object_id"] for query in town.get("/queries")["queries"]}
    known |= {label["object_id"] for label in labels(town, limit=1000)}
    rows = town.get("/alerts", params={"limit": 500})["alerts"]
    other = next(row for row in rows if row["object_id"] not in known)
    here.page.goto(f"{town.url}/?alert={other['alert_id']}")
    assert f"ztf:{here.object()}" == other["object_id"]
    name = here.answer("3")
    here.sent()
    assert standing(town, name) == [CLASSES[2]]
    assert "alert=" not in here.page.url


# Two people.


def test_two_people_never_look_at_the_same_alert(town: System, visit: Opens) -> None:
    maria, tycho = visit("maria"), visit("tycho")
    seen: dict[str, set[str]] = {"maria": set(), "tycho": set()}
    for i in range(5):
        assert maria.object() != tycho.object()
        seen["maria"].add(maria.answer("1234"[i % 4]))
        assert maria.object() != tycho.object()
        seen["tycho"].add(tycho.answer("4321"[i % 4]))
    assert len(seen["maria"]) == len(seen["tycho"]) == 5
    assert not seen["maria"] & seen["tycho"]
    maria.wait("document.getElementById('by-person').textContent.includes('tycho 5')")


def test_a_guest_may_look_but_not_label(visit: Opens) -> None:
    guest = visit(None)
    name = guest.object()
    assert "look, but not label" in guest.text("#banner")
    assert guest.page.locator("#classes button:disabled").count() == 4
    guest.press("1")
    guest.page.wait_for_timeout(200)
    assert guest.object() == name


# What is seen.


def test_the_unit_and_the_zero_of_time_change_with_a_key(visit: Opens) -> None:
    here = visit()
    here.object()
    titles = "() => ['x', 'y'].map((a) => document.getElementById('curve').layout[`${a}axis`].title.text)"
    assert here.page.evaluate(titles) == ["days since this alert", "magnitude"]
    here.press("m")
    here.press("t")
    assert here.page.evaluate(titles) == ["days since the first detection", "flux (µJy)"]
    here.page.reload()
    here.object()
    assert here.page.evaluate(titles) == ["days since the first detection", "flux (µJy)"], "remembered"


def test_dates_stand_above_the_days_and_follow_a_zoom(visit: Opens) -> None:
    here = visit()
    here.object()
    ranges = "() => { const l = document.getElementById('curve').layout; return [l.xaxis.range, l.xaxis2.range, l.meta.start]; }"
    here.page.evaluate("() => Plotly.relayout('curve', {'xaxis.range': [-3, 1]})")
    days, dates, start = here.page.evaluate(ranges)
    shown = here.page.evaluate(
        "(dates) => dates.map((one) => Date.parse(one.replace(' ', 'T').replace(/Z?$/, 'Z')) / 86400000 + 40587)",
        dates,
    )
    assert days == [-3, 1]
    assert shown == pytest.approx([start - 3, start + 1], abs=1e-4)


def test_a_point_says_what_it_is(visit: Opens) -> None:
    here = visit()
    here.object()
    text = here.page.evaluate("() => document.getElementById('curve').data[0].text[0]")
    assert re.search(
        r"<b>[gri] (detection|forced|limit)</b><br>2023-\d\d-\d\d \d\d:\d\d UT<br>MJD \d{5}\.\d{4}", text
    )
    about = here.page.locator("#curve").get_attribute("aria-label")
    assert re.match(r"Light curve: \d+ detections in [gri]", about)


def test_cutouts_change_their_stretch_and_range(visit: Opens) -> None:
    here = visit()
    here.object()
    image = here.page.locator("#stamps img").first
    here.wait("document.querySelectorAll('#stamps img').length === 3")
    pixels = {image.get_attribute("src"): image.screenshot()}
    for key, part in (("x", "stretch=linear"), ("z", "limits=percentile"), ("x", "stretch=log")):
        here.press(key)
        here.wait(
            "(part) => [...document.querySelectorAll('#stamps img')].every((one) => one.src.includes(part))",
            part,
        )
        pixels[image.get_attribute("src")] = image.screenshot()
    assert len(set(pixels.values())) == 4
    assert here.page.input_value("#stretch") == "log"


def test_links_lead_to_the_object_elsewhere(visit: Opens) -> None:
    here = visit()
    name = here.object()
    found = {link.inner_text(): link for link in here.page.locator("#links a").all()}
    assert set(found) == {"ALeRCE", "Lasair", "Fink", "TNS", "SIMBAD", "Legacy Survey"}
    for link in found.values():
        assert link.get_attribute("href").startswith("https://")
        assert "noopener" in link.get_attribute("rel")
    assert found["ALeRCE"].get_attribute("href").endswith(name)
    assert found["SIMBAD"].get_attribute("href").count("%20") == 1


def test_scores_of_the_object_name_their_snapshot(visit: Opens) -> None:
    here = visit()
    here.object()
    texts = here.page.evaluate("() => document.getElementById('history').data.flatMap((one) => one.text)")
    assert any(re.search(r"snapshot \d+<br>2023", text) for text in texts)
    assert any("when asked" in text for text in texts)
    assert here.page.locator("#members tr").count() >= 4


def test_the_sky_shows_this_alert_and_the_other_questions(visit: Opens) -> None:
    here = visit()
    here.object()
    assert here.page.locator("#sky .here").count() == 1
    assert here.page.locator("#sky .other").count() >= 5
    assert re.match(r"b [−+]\d", here.text("#sky-note"))


def test_the_learning_curve_grows_with_the_measures_of_the_snapshots(visit: Opens) -> None:
    here = visit()
    here.object()
    points = [
        {
            "number": n,
            "labels": 5 * n,
            "when": "2026-01-01T00:00:00+00:00",
            "metrics": {"accuracy": 1 - 1 / n, "log_loss": 1 / n},
        }
        for n in range(1, 9)
    ]
    here.page.route("**/curve", lambda route: route.fulfill(json={"model": MODEL, "snapshots": points}))
    here.page.reload()
    here.object()
    here.wait("document.getElementById('learning').data?.[0].x.length === 8")
    assert here.text("#learning-note") == "accuracy 0.875 after 40 labels (snapshot 8)"
    here.page.select_option("#metric", "log_loss")
    here.wait("document.getElementById('learning-note').textContent.startsWith('log loss 0.125')")
    here.picture("learning-curve", full_page=True)


# Hands and eyes.


def test_the_help_names_every_key_and_keeps_them_from_answering(town: System, visit: Opens) -> None:
    here = visit()
    name, said = here.object(), len(labels(town))
    here.press("?")
    keys = {one.inner_text() for one in here.page.locator("#keys kbd").all()}
    assert keys >= set("1234AVB0SUCMTXZ?")
    here.picture("help")
    here.press("1")
    here.press("Escape")
    here.wait("!document.getElementById('help').open")
    assert (here.object(), len(labels(town))) == (name, said)


def test_nothing_jumps_from_one_alert_to_the_next(visit: Opens) -> None:
    here = visit()
    places = []
    for key in "1234":
        here.object()
        boxes = [
            here.page.locator(name).bounding_box()
            for name in ("#classes button >> nth=0", "#undo", "#stamps", "#curve")
        ]
        places.append([(box["x"], box["y"]) for box in boxes])
        here.answer(key)
    assert all(place == places[0] for place in places)


def test_a_keyboard_alone_reaches_everything_and_keeps_its_place(visit: Opens) -> None:
    here = visit()
    name = here.object()
    here.page.focus("#classes button >> nth=1")
    here.press("Enter")
    here.wait("(name) => document.getElementById('object').textContent !== name", name)
    here.object()
    assert here.page.evaluate("() => document.activeElement.dataset.name") == "AGN"
    reached = set()
    for _ in range(60):
        here.press("Tab")
        reached.add(here.page.evaluate("() => document.activeElement.id"))
    assert reached >= {
        "help-button",
        "stretch",
        "limits",
        "unit",
        "since",
        "cant-tell",
        "skip",
        "undo",
        "comment",
    }


NAMELESS = """() => [...document.querySelectorAll('button, input, select, img, [role=img], nav, section, dialog, progress')]
    .filter((one) => one.offsetParent !== null || one.tagName === 'svg')
    .filter((one) => {
      const by = one.getAttribute('aria-labelledby');
      return !(one.getAttribute('aria-label') || one.alt || one.innerText?.trim() || one.labels?.length
        || (by && document.getElementById(by)));
    }).map((one) => one.outerHTML.slice(0, 80))"""


def test_everything_has_a_name_for_a_screen_reader(visit: Opens) -> None:
    here = visit()
    here.object()
    here.wait("document.querySelectorAll('#stamps img').length === 3")
    assert here.page.evaluate(NAMELESS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_and_labels_by_touch(town: System, visit: Opens, scheme: str) -> None:
    here = visit(**PHONE, color_scheme=scheme)
    name = here.object()
    here.wait("document.querySelectorAll('#stamps img').length === 3")
    assert here.page.evaluate("() => document.documentElement.scrollWidth") <= 390
    here.picture(f"phone-{scheme}")
    button = here.page.locator("#classes button", has_text="supernova")
    assert button.bounding_box()["height"] >= 44
    assert button.bounding_box()["y"] + button.bounding_box()["height"] <= 844, "without scrolling"
    button.tap()
    here.wait("(name) => document.getElementById('object').textContent !== name", name)
    here.sent()
    assert standing(town, name) == ["supernova"]
    here.page.tap("#comment-button")
    assert here.page.locator("#comment").is_visible()


def test_the_dark_page(visit: Opens) -> None:
    here = visit(color_scheme="dark")
    here.object()
    here.wait("document.querySelectorAll('#stamps img').length === 3")
    ground = here.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in re.findall(r"\d+", ground)) < 40
    here.picture("dark", full_page=True)
