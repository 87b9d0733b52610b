"""How HAProxy sends a request to a home of its task: rules for its configuration, and the map that they read.

The map names each task's servers, and HAProxy reads it anew with every request. So a placement changes without a
reload. Pure: text in, text out. `haproxy_start` writes both when HAProxy starts; `homes_keeper` keeps the map then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from serving.errors import StartError
from serving.placement.choices import BUCKETS, Choices

MAP = "homes.map"
"""The name of the map's file, beside HAProxy's configuration."""

_SLOTS = 16
"""A task with several homes has so many keys, of which each request takes one by chance."""
_SPREAD = "*"
"""In the map in place of servers: the task has several homes, and keys with a number behind this sign."""
SLACK = 4
"""Requests that a home may have in flight beside half as many again as its share, before it passes on further ones. All
proxies together: each has its part of them, as many as there were when it was started."""
_LOADS = "ken_loads"
_SERVERS_LONG = 255
_SERVERS = "100k"

_BACKEND = re.compile(r"backend (?!default_backend$)\S+")
_SERVER = re.compile(r"\s+server (\S+) ")
_LAST_RULE = re.compile(r"\s+http-reuse always")
_IN_THE_WAY = re.compile(r"\s+(use-server|force-persist|stick|cookie) ")

_KEY_FORM = re.compile(r"[A-Za-z0-9_.@*-]+")
_TASK = "txn.ken_task"
_HOMES = "txn.ken_homes"
_KEY = "txn.ken_key"
_LOAD = "txn.ken_load"
_IF_NEW = f"{_TASK},ifnotexists"
_FIRST = "txn.ken_server"
_SECOND = "txn.ken_second"
_NAME = "url_dec,field(1,@)"
_FROM_BODY = "/v1/chat/completions /v1/completions /v1/embeddings /embed /predict /rerank /v1/rerank /v2/rerank"


def placing(text: str, folder: Path, slack: int = SLACK) -> str:
    """An edited configuration file with the rules in the section of every application.

    A task is named by the path, else by ``X-Ken-Task``, else by the body's ``model``, as far as `tune.bufsize` goes.
    Its first server of the map is asked. The second is asked if the first is down, or if the first has more than 1.5
    times its share of the requests in flight, and the second has fewer. Every proxy counts its own requests. A task
    that the map does not know has the servers of its bucket. Without a name, or if no server is known, HAProxy balances
    as it would without these rules.

    Args:
        text: as `haproxy_file.edited` makes it, so that the body is there.
        folder: where the map is.
        slack: this proxy's part of `SLACK`.

    Raises:
        StartError: a section has a form that the rules do not fit.
    """
    made = list[str]()
    backend = ""
    for line in text.splitlines():
        if re.match(r"[^\s#]", line):
            backend = line.strip().partition(" ")[2] if _BACKEND.fullmatch(line.strip()) else ""
        elif backend and _IN_THE_WAY.match(line):
            raise StartError(f"found `{line.strip()}` under `backend {backend}`, which decides about servers as well")
        made.append(line)
        if backend and _LAST_RULE.fullmatch(line):
            made += [f"    {rule}" for rule in _rules(backend, folder / MAP, slack)]
    return "".join(f"{line}\n" for line in [*made, *_loads()])


def servers_of(text: str) -> list[str]:
    """The names of all servers in a configuration file."""
    return [found[1] for line in text.splitlines() if (found := _SERVER.match(line))]


def replicas_of(servers: list[str], ids: Mapping[str, str]) -> dict[str, str]:
    """The server of each replica.

    Args:
        ids: Serve's own id of each replica, with which the server's name ends.
    """
    by_id = {server.rpartition("-")[2]: server for server in servers}
    return {replica: by_id[id] for replica, id in ids.items() if id in by_id}


def slack_for(proxies: int) -> int:
    """The part of `SLACK` that one of so many proxies has: at least 1."""
    return max(1, SLACK // max(1, proxies))


def map_of(asked: Mapping[str, Choices]) -> str:
    """The map's text, of the servers to ask by task. Keys that cannot be names of tasks are left out."""
    return "".join(f"{key} {servers}\n" for key, servers in _entries(asked) if _KEY_FORM.fullmatch(key))


def _entries(asked: Mapping[str, Choices]) -> Iterator[tuple[str, str]]:
    for key, choices in asked.items():
        if len(choices) == 1:
            yield key, "|".join(choices[0])
            continue
        yield key, _SPREAD
        for slot in range(_SLOTS):
            yield f"{key}{_SPREAD}{slot}", "|".join(choices[slot % len(choices)])


def _rules(backend: str, file: Path, slack: int) -> list[str]:
    """The rules. Where a value is missing, what is computed of it is not set: so few conditions are needed, each of
    which takes as long as a value."""

    def let(name: str, value: str, condition: str = "") -> str:
        return f"http-request set-var({name}) {value}{condition and f' if {condition}'}"

    def text(name: str, value: str, condition: str) -> str:
        return f"http-request set-var-fmt({name}) {value} if {condition}"

    homed = f"{{ var({_HOMES}) -m found }}"
    return [
        f"acl ken_in_body path {_FROM_BODY}",
        f"acl ken_busy var({_LOAD}) -m int gt {slack}",
        let(_TASK, f"path,field(4,/),{_NAME}", "{ path_beg /v1/tasks/ /v2/models/ }"),
        let(_IF_NEW, f"path,field(3,/),{_NAME}", "{ path_beg /models/ }"),
        let(_IF_NEW, "req.hdr(X-Ken-Task),field(1,@)"),
        let(_IF_NEW, "req.body,json_query('$.model'),field(1,@)", "ken_in_body METH_POST"),
        let(_HOMES, f"var({_TASK}),map_str({file})"),
        text(_KEY, f"%[var({_TASK})]{_SPREAD}%[rand({_SLOTS})]", f"{{ var({_HOMES}) -m str {_SPREAD} }}"),
        text(_KEY, f"@%[var({_TASK}),crc32,mod({BUCKETS})]", f"!{homed} {{ var({_TASK}) -m found }}"),
        let(_HOMES, f"var({_KEY}),map_str({file})"),
        let(_FIRST, f"var({_HOMES}),field(1,|)"),
        let(_LOAD, f"var({_FIRST}),table_conn_cur({_LOADS})"),
        # over, if above 0: load > slack + 1.5 * all / servers, in whole numbers
        let("txn.ken_servers", f"nbsrv({backend})", "ken_busy"),
        let("txn.ken_share", f"be_conn({backend}),mul(3)", "ken_busy"),
        let(
            "txn.ken_over",
            f"var({_LOAD}),sub({slack}),mul(2),mul(txn.ken_servers),sub(txn.ken_share)",
            "ken_busy",
        ),
        let(_SECOND, f"var({_HOMES}),field(2,|)", "{ var(txn.ken_over) -m int gt 0 }"),
        let("txn.ken_more", f"var({_SECOND}),table_conn_cur({_LOADS}),sub({_LOAD})"),
        let(_FIRST, f"var({_SECOND})", "{ var(txn.ken_more) -m int lt 0 }"),
        f"http-request track-sc1 var({_FIRST}) table {_LOADS}",
        f"use-server %[var({_FIRST})] if {homed}",
        f"use-server %[var({_HOMES}),field(2,|)] if {homed}",
    ]


def _loads() -> list[str]:
    """The table of the requests in flight at each server."""
    return [f"backend {_LOADS}", f"    stick-table type string len {_SERVERS_LONG} size {_SERVERS} store conn_cur"]
