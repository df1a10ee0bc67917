"""Tokens, one-time links and cookies."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybroker.service.sessions import LinkError, Sessions


def sessions(folder: Path, now: float = 0.0, secret: bytes = b"secret") -> Sessions:
    return Sessions({"right": "maria"}, secret, folder, clock=lambda: now)


def test_a_token_names_its_owner(tmp_path: Path) -> None:
    assert sessions(tmp_path).who("Bearer right", None) == "maria"
    for wrong in ("Bearer wrong", "Bearer ", "Basic right", "right", "", None):
        assert sessions(tmp_path).who(wrong, None) is None


def test_a_wrong_token_is_not_saved_by_a_cookie(tmp_path: Path) -> None:
    own = sessions(tmp_path)
    cookie = own.redeem(own.link("maria"))
    assert own.who(None, cookie) == "maria"
    assert own.who("Bearer wrong", cookie) is None


def test_a_link_opens_once_for_all_servers(tmp_path: Path) -> None:
    link = sessions(tmp_path).link("maria")
    sessions(tmp_path).redeem(link)
    with pytest.raises(LinkError, match="used before"):
        sessions(tmp_path).redeem(link)


def test_a_link_and_a_cookie_grow_old(tmp_path: Path) -> None:
    link = sessions(tmp_path).link("maria")
    with pytest.raises(LinkError, match="too old"):
        sessions(tmp_path, now=25 * 3600).redeem(link)
    cookie = sessions(tmp_path).redeem(link)
    assert sessions(tmp_path, now=6 * 86400).who(None, cookie) == "maria"
    assert sessions(tmp_path, now=8 * 86400).who(None, cookie) is None


def test_nobody_else_can_make_one(tmp_path: Path) -> None:
    forged = sessions(tmp_path, secret=b"other").link("maria")
    own = sessions(tmp_path).link("maria")
    for wrong in (forged, own[:-2], own + "x", own.swapcase(), "", ".", "a.b.c", "é.ü", "a" * 900):
        with pytest.raises(LinkError):
            sessions(tmp_path).redeem(wrong)


def test_a_link_is_no_cookie_and_a_cookie_no_link(tmp_path: Path) -> None:
    own = sessions(tmp_path)
    assert own.who(None, own.link("maria")) is None
    with pytest.raises(LinkError):
        own.redeem(own.redeem(own.link("maria")))
