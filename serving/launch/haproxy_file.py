"""Edits Ray's configuration of HAProxy: where HAProxy listens, limits on connections, its own answers, timeouts.

Ray has no settings for these, so lines of its file are found and replaced. Pure: text in, text out. `haproxy_start`
calls it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.errors import StartError
from serving.launch.haproxy_answers import FORMS, NATIVE_TYPE, OWN_ANSWERS, OwnAnswer, map_name

_SECTIONS = (
    "global",
    "defaults",
    "frontend prometheus",
    "frontend http_frontend",
    "backend default_backend",
    "listen stats",
)
_BACKEND = re.compile(r"backend (?!default_backend$)\S+")
"""Sections that are there exactly once, and those that are there once for each application."""

_SENSITIVE = re.compile(r"(bind|errorfile|stats (socket|admin))\b|server .* backup( |$)")
"""Lines that open a socket, replace an error status or pass requests on elsewhere. Each must be known to an edit."""

_REQUEST_HEAD_SECONDS = 20
_SOURCES = "100k"
_SOURCE = "http-request set-header X-Forwarded-For %[src]"
_PATH = "txn.ken_path"
_REMEMBER_PATH = f"http-request set-var-fmt({_PATH}) %[path]/"
CHANGE_SECONDS = 600
"""How long a change may take."""
GENERATION_SECONDS = 605
"""How long a text may take until its last token, where no setting says so: a little longer than the replica's limit."""
CHANGES = (
    "acl ken_predicts path_reg ^/v1/tasks/[^/]+/(predict|generate)$",
    "acl ken_changes path_beg /v1/tasks/ /v1/uploads/ /v1/keys/ /v1/base/ /v1/store/",
    "acl ken_changes path /v1/keys",
    f"http-request set-timeout server {CHANGE_SECONDS}s if ken_changes !ken_predicts !METH_GET",
)
GENERATIONS = (
    "acl ken_generates path_reg ^/v1/tasks/[^/]+/generate$",
    "acl ken_generates path /v1/chat/completions /v1/completions",
    "acl ken_generates path_beg /models/",  # where the task decides whether text is generated
)
_PREDICTIONS = "METH_POST ken_predicts or METH_POST !ken_changes"


@dataclass(frozen=True)
class Frontend:
    """HAProxy's frontend, to which clients connect.

    Attributes:
        binds: addresses to listen on, each as HAProxy's ``bind`` takes it; empty leaves Ray's address.
        connections: most open connections of all sources together; 0 leaves Ray's number.
        per_source: most open connections of one source, an IPv4 address or a /64 network of IPv6; 0 is no limit.
    """

    binds: tuple[str, ...] = ()
    connections: int = 0
    per_source: int = 0


@dataclass(frozen=True)
class _Edit:
    """A line of a section, and a function that makes the lines in its place from the match.

    Attributes:
        section: of the sections' names. Each section whose name it matches has the line exactly once.
        optional: whether a section may lack the line.
        several: whether a section may have several such lines.
    """

    section: re.Pattern[str]
    line: re.Pattern[str]
    into: Callable[[re.Match[str]], list[str]]
    optional: bool = False
    several: bool = False


_SERVER = re.compile(r"server (\S+) (\S+):\d+( .*)?")


def servers_in(text: str) -> dict[str, list[str]]:
    """The lines of the servers of each application that has any, by the name of its section."""
    found = {name: [line for line in lines if _is_replica(line)] for name, lines in _sections(text)}
    return {name: lines for name, lines in found.items() if lines and _BACKEND.fullmatch(name)}


def with_servers(text: str, before: dict[str, list[str]]) -> str:
    """Ray's file with the servers of `before` in each application that has none.

    While it builds an application anew, with other settings, Ray names no replica of it for a second or two, though all
    of them answer. Those that are really gone fail HAProxy's checks.
    """
    made = list[str]()
    for name, lines in _sections(text):
        made += lines
        if not any(map(_is_replica, lines)):
            made += before.get(name, [])
    return "".join(f"{line}\n" for line in made)


def _is_replica(line: str) -> bool:
    """Whether a line names a replica, and not the proxy of Ray's that is asked for want of one."""
    return _SERVER.fullmatch(line.strip()) is not None and not line.rstrip().endswith(" backup")


def hosts_of(text: str) -> set[str]:
    """The hosts of all servers in a configuration file."""
    return {found[2] for line in text.splitlines() if (found := _SERVER.fullmatch(line.strip()))}


def edited(
    text: str,
    frontend: Frontend,
    maps: Path,
    body_seconds: int,
    own: Collection[str],
    generation_seconds: int = GENERATION_SECONDS,
) -> str:
    """Ray's configuration file with every edit made.

    - Statistics and HAProxy's own metrics listen on loopback, and only its owner can open the admin socket.
    - HAProxy's own 502, 503 and 504 keep their status and have the form that their path's clients expect
      (`haproxy_answers`). Ray turns each of them into a 500 of plain text.
    - Without a replica, clients get 503 at once. Ray passes their requests to a proxy of its own, where they wait or
      fail. While HAProxy knows of no application, as after its restart, they get 503 too, and not Ray's 404.
    - Changes may take 10 minutes: a publish tries the delta, and clients may wait for every replica. Ray has one time
      limit for all requests.
    - Text may take `generation_seconds` to generate. Within this time the replica sends a comment now and then.
    - A prediction is passed on once its body is there, or as much of it as the buffer holds. A request whose replica
      ends can be repeated on another one only then, and most clients send the body after the head.
    - ``/-/healthz`` is 200 while a replica on this machine answers, so that load balancers leave out a machine whose
      replica is gone or not there yet. Ray's is 200 while any replica answers: while machines are drained one after
      another, each would have been taken for the replacement of the one before.
    - The frontend listens on `frontend.binds`, limits the connections of each source, and sets ``X-Forwarded-For`` to
      the client's address, whatever the request contains.
    - A client that sends its headers too slowly is disconnected after 20 s. Ray sets no limit.
    - A client that disconnects is noticed. With ``splice-request``, which Ray sets, HAProxy 2.8 does not notice it if
      the body came after the headers, and the replica would compute inputs that nobody waits for.

    Args:
        maps: the folder with the files of `haproxy_answers.maps`.
        body_seconds: the longest time that a prediction's body may take. Then the client gets 408.
        own: those of `hosts_of` that are this machine.
        generation_seconds: the longest time without a word of a replica that generates text.

    Raises:
        StartError: a section is missing or unknown, a line that an edit replaces is not there exactly once in its
            section, or an unknown line opens a socket or passes requests on elsewhere.
    """
    sections = list(_sections(text))
    _check_names([name for name, _ in sections if name])
    local = {name: [server for server, host in servers if host in own] for name, servers in _servers(sections)}
    edits = _edits(frontend, maps, body_seconds, local, generation_seconds)
    return "".join(f"{line}\n" for name, lines in sections for line in _section_edited(name, lines, edits))


def _servers(sections: list[tuple[str, list[str]]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The names and hosts of the replicas of each backend."""
    for name, lines in sections:
        found = [match for line in lines if _is_replica(line) and (match := _SERVER.fullmatch(line.strip()))]
        yield name.partition(" ")[2], [(match[1], match[2]) for match in found]


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """The names of the sections and their lines, each with the line of its name; at first, without a name, what stands
    before any section."""
    name, lines = "", list[str]()
    for line in text.splitlines():
        if re.match(r"[^\s#]", line):
            yield name, lines
            name, lines = line.strip(), []
        lines.append(line)
    yield name, lines


def _check_names(names: list[str]) -> None:
    for name in names:
        if name not in _SECTIONS and not _BACKEND.fullmatch(name):
            raise _unknown(f"a section `{name}`")
    for name in _SECTIONS:
        if (times := names.count(name)) != 1:
            raise _unknown(f"{times} sections `{name}`, expected 1")


def _section_edited(name: str, lines: list[str], edits: list[_Edit]) -> list[str]:
    made = {edit: 0 for edit in edits if edit.section.fullmatch(name)}
    result = list[str]()
    for line in lines:
        bare = line.strip()
        for edit in made:
            if found := edit.line.fullmatch(bare):
                made[edit] += 1
                result += [f"    {new}" for new in edit.into(found)]
                break
        else:
            if _SENSITIVE.match(bare):
                raise _unknown(f"`{bare}` under `{name}`")
            result.append(line)
    for edit, times in made.items():
        if times != 1 and not (edit.optional and times == 0) and not (edit.several and times > 1):
            raise _unknown(f"{times} lines like `{edit.line.pattern}` under `{name}`, expected 1")
    return result


def _edits(
    frontend: Frontend, maps: Path, body_seconds: int, local: dict[str, list[str]], generation_seconds: int
) -> list[_Edit]:
    def edit(section: str, line: str, into: Callable[[re.Match[str]], list[str]]) -> _Edit:
        return _Edit(re.compile(section), re.compile(line), into)

    return [
        edit(
            "global",
            r"stats socket (\S+) mode 666 level admin expose-fd listeners",
            lambda m: [f"stats socket {m[1]} mode 600 level admin expose-fd listeners"],
        ),
        edit("global", r"maxconn (\d+)", lambda m: [f"maxconn {frontend.connections or m[1]}"]),
        edit(
            "defaults",
            "option splice-request",
            lambda m: [
                f"timeout http-request {_REQUEST_HEAD_SECONDS}s",
                *(_own_answer(answer, maps) for answer in OWN_ANSWERS),
            ],
        ),
        *(edit("defaults", rf"errorfile {status} \S+", lambda m: []) for status in (502, 503, 504)),
        edit("frontend prometheus", r"bind :(\d+)", lambda m: [f"bind 127.0.0.1:{m[1]}"]),
        edit("listen stats", r"bind \*:(\d+)", lambda m: [f"bind 127.0.0.1:{m[1]}"]),
        edit(
            "frontend http_frontend",
            r"bind (\S+:\d+)",
            lambda m: [*_binds(frontend, m[1]), *_limits(frontend), _SOURCE, _REMEMBER_PATH, _types()],
        ),
        _Edit(
            re.compile("frontend http_frontend"),
            re.compile(r"acl (backend_\S+_server_up) nbsrv\((\S+)\) ge 1"),
            lambda m: _one_is_up(m[1], m[2], local.get(m[2], [])),
            optional=True,
            several=True,
        ),
        edit("backend default_backend", r"http-request return status 404 .*", lambda m: []),
        edit(
            _BACKEND.pattern,
            r"http-reuse always",
            lambda m: [
                *CHANGES,
                *GENERATIONS,
                f"http-request set-timeout server {generation_seconds}s if METH_POST ken_generates",
                f"http-request wait-for-body time {body_seconds}s if {_PREDICTIONS}",
                m[0],
            ],
        ),
        # optional: Ray may hear of an application before it hears of the proxy that it falls back to
        _Edit(
            _BACKEND, re.compile(r"server SERVE_PROXY_ACTOR-fallback-\S+ \S+ check backup"), lambda m: [], optional=True
        ),
    ]


def _binds(frontend: Frontend, rays: str) -> Iterator[str]:
    return (f"bind {where}" for where in frontend.binds or (rays,))


def _one_is_up(condition: str, backend: str, servers: list[str]) -> list[str]:
    return [f"acl {condition} srv_is_up({backend}/{server})" for server in servers] or [f"acl {condition} always_false"]


def _limits(frontend: Frontend) -> list[str]:
    """A /64 network of IPv6 counts as one source, since whoever has one address of it has all 2^64."""
    if not frontend.per_source:
        return []
    return [
        f"stick-table type ipv6 size {_SOURCES} expire 1m store conn_cur",
        "tcp-request connection track-sc0 src,ipmask(32,64)",
        f"tcp-request connection reject if {{ sc0_conn_cur gt {frontend.per_source} }}",
    ]


def _own_answer(answer: OwnAnswer, maps: Path) -> str:
    body = f'lf-string "%[var({_PATH},/),map_beg({maps / map_name(answer)})]"'
    again = "" if answer.retry_after is None else f" hdr Retry-After {answer.retry_after}"
    return f"http-error status {answer.status} content-type {NATIVE_TYPE} {body}{again}"


def _types() -> str:
    """HAProxy's answers of one status share a type: that of the native form, which is not that of the others."""
    beginnings = " ".join(f"{parts}/" for parts in FORMS)
    ours, paths = f"{{ res.hdr(Content-Type) {NATIVE_TYPE} }}", f"{{ var({_PATH}) -m beg {beginnings} }}"
    return f"http-after-response set-header Content-Type application/json if {ours} {paths}"


def _unknown(found: str) -> StartError:
    return StartError(
        f"Ray's configuration of HAProxy has a form that this version of ken-serve does not know: found {found}. "
        "The server does not start, since it might be open to everybody; install the version of ray in constraints.txt"
    )
