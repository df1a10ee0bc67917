"""Machines of one's own for `ray up`, on one: a network namespace, a process tree, a home and an sshd each.

Each sees only its own processes, so `ray stop` on one of them leaves every other Ray alone, and when its first process ends all
of it is gone. They reach each other, and the machine that they are on, over a bridge, and nothing else.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("ip", "unshare", "nsenter", "sshd", "ssh", "ssh-keygen", "rsync")
SSHD = """\
Port 22
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
"""
# The home of root is this machine's own; where Python itself lives in the old one, it is put in the same place.
BOOT = """\
set -e
mkdir -p /tmp/ray /run/sshd
mount --bind {folder}/ray /tmp/ray
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/resolv.conf /etc/resolv.conf
mount -t tmpfs -o size=8g tmpfs /dev/shm
{keep}
mount --rbind {folder}/home {home}
exec /usr/sbin/sshd -D -e -f {folder}/sshd_config
"""


def missing() -> str | None:
    """None where such machines can be made here, else what they need."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    absent = [tool for tool in TOOLS if not shutil.which(tool)]
    if absent:
        return (
            f"not installed: {', '.join(absent)} (apt-get install iproute2 util-linux openssh-server rsync)"
        )
    return None


@dataclass(frozen=True)
class Machine:
    """One that runs: its address on the bridge, its home as seen from outside, and the process that is its first."""

    name: str
    address: str
    home: Path
    boot: subprocess.Popen[bytes]

    def run(self, command: str, seconds: float = 120.0) -> str:
        """What a shell there says to a command; an exception with all of it where the status is not 0."""
        inside = [
            "nsenter",
            "-t",
            self._first(),
            "-n",
            "-m",
            "-p",
            "-u",
            "-r",
            "bash",
            "-lc",
            f". ~/.bashrc; {command}",
        ]
        done = subprocess.run(
            inside, capture_output=True, text=True, timeout=seconds, check=False, env=_environment(self.home)
        )
        if done.returncode:
            raise RuntimeError(
                f"{command} on {self.name}: status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def _first(self) -> str:
        """The sshd, as it is called outside."""
        below = Path(f"/proc/{self.boot.pid}/task/{self.boot.pid}/children").read_text().split()
        return below[0]


def _environment(home: Path) -> dict[str, str]:
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(Path.home())}


@dataclass(frozen=True)
class Network:
    """A bridge with machines; `outside` is the address at which they reach this one."""

    outside: str
    key: Path
    machines: tuple[Machine, ...]


@contextmanager
def network(folder: Path, names: tuple[str, ...]) -> Iterator[Network]:
    """Machines that live while the context is open."""
    tag, subnet = secrets.token_hex(2), f"10.199.{secrets.randbelow(250)}"
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    with ExitStack() as opened:
        bridge = f"rb{tag}"
        _ip("link", "add", bridge, "type", "bridge")
        opened.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{subnet}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        machines = tuple(
            opened.enter_context(_machine(folder / name, name, f"{subnet}.{i + 1}", bridge, f"{tag}{i}", key))
            for i, name in enumerate(names)
        )
        yield Network(f"{subnet}.254", key, machines)


@contextmanager
def _machine(folder: Path, name: str, address: str, bridge: str, tag: str, key: Path) -> Iterator[Machine]:
    _furnish(folder, address, key)
    space = f"raybroker-{tag}"
    _ip("netns", "add", space)
    try:
        _plug(space, address, bridge, tag)
        with (folder / "sshd.log").open("ab") as log:
            inside = [
                "unshare",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount",
                "--mount-proc",
                "--uts",
                "bash",
                "-c",
            ]
            script = f"hostname {name}\n" + _boot(folder)
            boot = subprocess.Popen(
                ["ip", "netns", "exec", space, *inside, script],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        try:
            yield Machine(name, address, folder / "home", boot)
        finally:
            boot.kill()  # unshare ends, and with it the first process of the machine, and with it all others
            boot.wait()
    finally:
        _ip("netns", "del", space)


def _furnish(folder: Path, address: str, key: Path) -> None:
    for below in ("home", "ray"):
        (folder / below).mkdir(parents=True)
    (folder / "sshd_config").write_text(SSHD.format(address=address, folder=folder))
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {folder.name}\n")
    # Nobody answers there, at once: where a name server is silent, Ray's agent takes longer than its raylet waits for it.
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    shutil.copy(key.with_suffix(".pub"), folder / "authorized_keys")
    host_key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key")]
    subprocess.run(host_key, check=True)


def _plug(space: str, address: str, bridge: str, tag: str) -> None:
    """A cable from the bridge, and a route to everywhere, by which Ray finds the machine's own address."""
    _ip("link", "add", f"rbv{tag}", "type", "veth", "peer", "name", "eth0", "netns", space)
    _ip("link", "set", f"rbv{tag}", "master", bridge, "up")
    _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
    for device in ("eth0", "lo"):
        _ip("-n", space, "link", "set", device, "up")
    _ip("-n", space, "route", "add", "default", "via", address.rpartition(".")[0] + ".254")


def _boot(folder: Path) -> str:
    home, keep = Path.home(), []
    for place in {Path(sys.base_prefix), Path(sys.prefix)}:
        if place.is_relative_to(home):
            there = folder / "home" / place.relative_to(home)
            keep += [f"mkdir -p {there}", f"mount --bind {place} {there}"]
    return BOOT.format(folder=folder, home=home, keep="\n".join(keep))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def python_as_here(source: str) -> list[str]:
    """Commands that make `~/raybroker/venv` out of this test's Python, with the package from `source`.

    They stand in for pip, since the machines reach no index: what Python finds is the same, versions of the lock file and the
    package as it was sent.
    """
    sites, venv = sysconfig.get_paths()["purelib"], "~/raybroker/venv"
    place = f"{venv}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/here.pth"
    scripts = {"ray": "ray.scripts.scripts", "raybroker": "raybroker.cli.verbs"}
    return [
        f"mkdir -p ~/raybroker && {sys.executable} -m venv --without-pip {venv}",
        f"printf '%s\\n%s\\n' $(realpath {source}) {sites} > {place}",
        *(
            f'printf \'#!/bin/sh\\nexec %s -c "from {module} import main; main()" "$@"\\n\' $(realpath {venv})/bin/python'
            f" > {venv}/bin/{name} && chmod +x {venv}/bin/{name}"
            for name, module in scripts.items()
        ),
    ]
