"""Ray's configuration of HAProxy, made fit for users: where it listens, who may connect how often, what it says.

Ray has no settings for these, so lines are found and replaced. Pure: text in, text out; `haproxy_start` runs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from serving.errors import StartError

_SECTION = re.compile(r"\S")
_KNOWN_SECTIONS = re.compile(r"global|defaults|frontend (prometheus|http_frontend)|backend \S+|listen stats")
_OPENING = re.compile(r"(bind|errorfile|stats (socket|admin))\b")
"""What opens a socket or hides a status: no such line may be left that no edit knows."""

_REQUEST_HEAD_SECONDS = 20
_SOURCES = "100k"
_SOURCE = "http-request set-header X-Forwarded-For %[src]"


@dataclass(frozen=True)
class Frontend:
    """What clients meet.

    Args:
        binds: where it listens, each as HAProxy's ``bind`` takes it; empty leaves Ray's address.
        connections: most open ones, of all sources together; 0 leaves Ray's number.
        per_source: most open ones of one source, an IPv4 address or an IPv6 network of 64 bits; 0 is no limit.
    """

    binds: tuple[str, ...] = ()
    connections: int = 0
    per_source: int = 0


@dataclass(frozen=True)
class _Edit:
    """A line of a section and what comes in its place, given the match."""

    section: str
    line: re.Pattern[str]
    into: Callable[[re.Match[str]], list[str]]


def edited(text: str, frontend: Frontend) -> str:
    """The file as Ray wrote it, with every edit made.

    - Statistics and HAProxy's own metrics listen on loopback, the admin socket is for its owner.
    - A 502, 503 or 504 of HAProxy's own stays what it is. Ray makes a 500 of each.
    - The frontend listens where `frontend` says, limits the connections of each source, and tells replicas who a
      request came from, whatever the request itself says of that.
    - A client that drips its headers is let go after 20 s. Ray would let it hold its connection for ever.
    - A client that hangs up is noticed. With ``splice-request``, which Ray sets, HAProxy 2.8 does not see it when the
      body came after the headers, and nobody's inputs would be computed.

    Raises:
        StartError: a line that should be there once is not, or one is there that opens something unknown.
    """
    edits = _edits(frontend)
    made = [0] * len(edits)
    lines, section = [], ""
    for line in text.splitlines():
        bare = line.strip()
        if _SECTION.match(line) and not bare.startswith("#"):
            section = bare
            if not _KNOWN_SECTIONS.fullmatch(section):
                raise _unknown(f"a section `{section}`")
        for number, edit in enumerate(edits):
            if edit.section == section and (found := edit.line.fullmatch(bare)):
                made[number] += 1
                lines += [f"    {new}" for new in edit.into(found)]
                break
        else:
            if _OPENING.match(bare):
                raise _unknown(f"`{bare}` under `{section}`")
            lines.append(line)
    for edit, times in zip(edits, made, strict=True):
        if times != 1:
            raise _unknown(f"{times} lines like `{edit.line.pattern}` under `{edit.section}`, expected 1")
    return "\n".join(lines) + "\n"


def _edits(frontend: Frontend) -> list[_Edit]:
    def edit(section: str, line: str, into: Callable[[re.Match[str]], list[str]]) -> _Edit:
        return _Edit(section, re.compile(line), into)

    return [
        edit(
            "global",
            r"stats socket (\S+) mode 666 level admin expose-fd listeners",
            lambda m: [f"stats socket {m[1]} mode 600 level admin expose-fd listeners"],
        ),
        edit("global", r"maxconn (\d+)", lambda m: [f"maxconn {frontend.connections or m[1]}"]),
        edit("defaults", "option splice-request", lambda m: [f"timeout http-request {_REQUEST_HEAD_SECONDS}s"]),
        *(edit("defaults", rf"errorfile {status} \S+", lambda m: []) for status in (502, 503, 504)),
        edit("frontend prometheus", r"bind :(\d+)", lambda m: [f"bind 127.0.0.1:{m[1]}"]),
        edit("listen stats", r"bind \*:(\d+)", lambda m: [f"bind 127.0.0.1:{m[1]}"]),
        edit(
            "frontend http_frontend",
            r"bind (\S+:\d+)",
            lambda m: [*_binds(frontend, m[1]), *_limits(frontend), _SOURCE],
        ),
    ]


def _binds(frontend: Frontend, rays: str) -> Iterator[str]:
    return (f"bind {where}" for where in frontend.binds or (rays,))


def _limits(frontend: Frontend) -> list[str]:
    """Whoever has an IPv6 address has 2^64 of them, so a network counts as one source."""
    if not frontend.per_source:
        return []
    return [
        f"stick-table type ipv6 size {_SOURCES} expire 1m store conn_cur",
        "tcp-request connection track-sc0 src,ipmask(32,64)",
        f"tcp-request connection reject if {{ sc0_conn_cur gt {frontend.per_source} }}",
    ]


def _unknown(found: str) -> StartError:
    return StartError(
        f"Ray's configuration of HAProxy has a form that this version of ken-serve does not know: found {found}. "
        "Nothing is served rather than opened to everybody; install the version of ray that constraints.txt names"
    )
