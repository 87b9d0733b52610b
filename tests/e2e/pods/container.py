"""A container without a container runtime: namespaces, a read-only root, a user without capabilities."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.launch.haproxy_start import ENTRY

ROOT = Path(__file__).resolve().parents[3]
USER = 10001

_SCRIPT = r"""
set -eu
hostname {hostname}
mount --make-rprivate /
mount -t tmpfs scratch {scratch}
mkdir {scratch}/up {scratch}/work {scratch}/root
mount -t overlay image -o lowerdir=/,upperdir={scratch}/up,workdir={scratch}/work {scratch}/root
cd {scratch}/root
chmod 755 {scratch}/up
mount --rbind /dev dev
mount -t tmpfs shm dev/shm
chmod 1777 dev/shm
mount --rbind /sys sys
{volumes}
ln -sf {haproxy} usr/local/bin/ken-haproxy
mount -t proc proc proc
mount -o remount,ro,bind {scratch}/root
exec chroot . setpriv --reuid={user} --regid={user} --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all --ambient-caps=-all -- {command}
"""


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine at a place in the container."""

    source: Path
    target: str
    writable: bool = False


def image() -> dict[str, str]:
    """The variables that the image sets."""
    text = (ROOT / "deploy/docker/Dockerfile").read_text()
    server = text.partition(" AS server")[2].partition("\nENV ")[2].partition("\n\n")[0]
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return dict(re.findall(r"(\w+)=(\S+)", server)) | {"PATH": path}


def places_of_the_image() -> list[Path]:
    """Folders that the image has at other places: this repository, and the Python that runs it."""
    interpreter = Path(os.path.realpath(sys.executable)).parents[1]
    places = [ROOT, Path(sys.prefix), interpreter]
    return [place for place in places if not any(other in place.parents for other in places)]


def start(
    hostname: str, network: str, command: list[str], environment: Mapping[str, str], mounts: list[Mount], folder: Path,
    log: Path, user: int = USER,
) -> subprocess.Popen[bytes]:  # fmt: skip
    """Start a command as the first process of a container. The container ends with it, and with the returned process.

    Args:
        network: name of the network namespace.
        environment: added to the image's.
        folder: empty, for the container's own use.
        log: takes the output.
    """
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    images = [Mount(place, str(place)) for place in places_of_the_image()]
    variables = [f"{name}={value}" for name, value in (image() | dict(environment)).items()]
    script = _SCRIPT.format(
        hostname=hostname, scratch=scratch, haproxy=ENTRY, user=user,
        volumes="\n".join(_mounting(mount) for mount in sorted((*mounts, *images), key=_depth)),
        command=shlex.join(["env", "-i", *variables, *command]),
    )  # fmt: skip
    unshared = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
    with log.open("ab") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", network, *unshared, "bash", "-c", script], stdout=output, stderr=output,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip


def _depth(mount: Mount) -> int:
    return len(Path(mount.target).parts)


def _mounting(mount: Mount) -> str:
    target = shlex.quote(os.path.realpath(mount.target).lstrip("/"))  # /var/run is a link to /run of this machine
    open_ = " ".join(shlex.quote(str(p).lstrip("/")) for p in Path(mount.target).parents if p != Path("/"))
    make = f"mkdir -p {target}" if mount.source.is_dir() else f"mkdir -p $(dirname {target}); touch {target}"
    bind = f"mount --rbind {shlex.quote(str(mount.source))} {target}"
    enter = f"; chmod o+x {open_}" if mount.source in places_of_the_image() else ""
    return f"{make}{enter}; {bind}" + ("" if mount.writable else f"; mount -o remount,ro,bind {target}")


def first_process(container: subprocess.Popen[bytes]) -> int | None:
    """The process id, outside, of the container's first process; None before it runs or after it ended."""
    children = Path(f"/proc/{container.pid}/task/{container.pid}/children")
    try:
        found = children.read_text().split()
    except FileNotFoundError:
        return None
    return int(found[0]) if found else None


def send(container: subprocess.Popen[bytes], number: signal.Signals) -> None:
    first = first_process(container)
    if first is not None:
        os.kill(first, number)
