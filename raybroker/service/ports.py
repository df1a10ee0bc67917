"""A port to listen on; apart from the server, since who starts Ray Serve need not load what the service needs."""

from __future__ import annotations

import socket

from raybroker.errors import SettingsError


def free_port(host: str, wanted: int) -> int:
    """The wanted port, or the next one that nobody listens on; 0 is any."""
    for port in range(wanted, wanted + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SettingsError(f"service.port = {wanted}: this and the next hundred ports of {host} are taken")
