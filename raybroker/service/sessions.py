"""Who is asking: tokens for programs, a one-time link and a signed cookie for the page.

Whoever holds the secret can make a link; any server with the same secret and folder redeems it, once. A link is used
up by the creation of a file named by its digest, so that two servers cannot both accept it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raybroker.archive import store
from raybroker.errors import RaybrokerError
from raybroker.places import Place

COOKIE = "raybroker"
LINK_SECONDS = 24 * 3600
COOKIE_SECONDS = 7 * 24 * 3600


class LinkError(RaybrokerError):
    """A one-time link that was used before, is too old, or was never ours."""


@dataclass(frozen=True)
class Sessions:
    """Tokens → names, and what is signed with `secret`. `folder` remembers the links that were used."""

    tokens: Mapping[str, str]
    secret: bytes
    folder: Place
    clock: Callable[[], float] = time.time

    def link(self, name: str) -> str:
        """A one-time token that lets its bearer label as `name`: the end of `/open/...`."""
        return self._sign("link", name, LINK_SECONDS)

    def redeem(self, token: str) -> str:
        """The cookie for a link's token, which is used up by this."""
        name = self._read("link", token)
        if name is None:
            raise LinkError(
                "this link is not valid, or too old; ask for a new one where raybroker was started"
            )
        if not store.write_new(self.folder / hashlib.sha256(token.encode()).hexdigest(), b""):
            raise LinkError("this link was used before: each opens the page once")
        return self._sign("cookie", name, COOKIE_SECONDS)

    def who(self, authorization: str | None, cookie: str | None) -> str | None:
        """The name behind an `Authorization: Bearer` header or a cookie, None if there is none."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            return self._owner(token.strip())
        return self._read("cookie", cookie) if cookie else None

    def _owner(self, token: str) -> str | None:
        """All tokens are compared, each in constant time: how long it takes says nothing."""
        given = hashlib.sha256(token.encode()).digest()
        found = None
        for known, name in self.tokens.items():
            if hmac.compare_digest(hashlib.sha256(known.encode()).digest(), given):
                found = name
        return found

    def _sign(self, use: str, name: str, seconds: float) -> str:
        content = json.dumps([use, name, self.clock() + seconds, secrets.token_hex(8)]).encode()
        return f"{_text(content)}.{_text(self._mac(content))}"

    def _read(self, use: str, token: str) -> str | None:
        try:
            content, mac = (base64.urlsafe_b64decode(part + "==") for part in token.split("."))
        except (ValueError, binascii.Error):
            return None
        if not hmac.compare_digest(mac, self._mac(content)):
            return None
        said_use, name, until, _ = json.loads(content)
        return str(name) if said_use == use and self.clock() < until else None

    def _mac(self, content: bytes) -> bytes:
        return hmac.digest(self.secret, content, "sha256")


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
