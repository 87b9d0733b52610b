"""The process beside each HAProxy that keeps its map of homes: it follows the placement in the store.

`homes_keeping.start` starts it. It belongs to the process of Ray's that starts HAProxy anew at every change of
replicas, and ends with it. It needs neither Ray nor torch, and of the settings only the store's URL and the namespace.
"""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from serving.errors import StoreError
from serving.launch.haproxy_admin import AdminSocket
from serving.launch.haproxy_homes import MAP, servers_of, slack_for
from serving.launch.homes_file import KnownHomes
from serving.launch.homes_keeping import NAMESPACE, TROUBLE, alone, store_url
from serving.placement.plan import Placement
from serving.placement.targets import targets
from serving.store import Store

_log = logging.getLogger(__name__)

_TURN_SECONDS = 1.0
_BLIND_SECONDS = 5.0
"""After the store did not answer, replicas have so long to report again before HAProxy stops asking them."""
_SOCKET = re.compile(r"^\s+stats socket (\S+) ", re.MULTILINE)


class HomesKeeper:
    """Keeps the map of one HAProxy.

    Args:
        configuration: HAProxy's file, as `haproxy_start` edited it. It is read again in every turn.
        name: of the proxy, for `Placements.report_proxy`.
    """

    def __init__(self, configuration: Path, store: Store, name: str) -> None:
        self._configuration = configuration
        self._folder = configuration.parent
        self._store = store
        self._name = name
        self._placement = Placement(-1)
        self._known = KnownHomes.read(self._folder)
        self._applied: tuple[int, str] | None = None
        self._trouble = ""
        self._blind_until = 0.0
        self._cut_off = False

    def turn(self) -> None:
        """Read the placement, have HAProxy route by it, and report what came of it."""
        try:
            self._read()
            self._cut_off = False
        except StoreError as error:
            if not self._cut_off:
                _log.warning("%s; HAProxy routes by the placement it knows", error)
            self._cut_off = True
            self._blind_until = time.monotonic() + _BLIND_SECONDS
        self._tell(self._apply())
        with suppress(StoreError):
            self._store.placements.report_proxy(self._name, max(0, self._placement.epoch), self._trouble)

    def _read(self) -> None:
        newer = self._store.placements.read(self._placement.epoch)
        if newer is not None:
            self._placement = newer
        there = self._store.placements.present()
        seen = {replica: presence.seen for replica, presence in there.items() if presence.ready}
        if self._placement.replicas and (not seen or time.monotonic() < self._blind_until):
            return  # they report again within two seconds; HAProxy itself sees which of them answer
        known = KnownHomes(
            targets(self._placement, seen) if self._placement.replicas else {},
            {replica: presence.serve for replica, presence in there.items()},
            slack_for(len(self._store.placements.proxies())),
        )
        if known != self._known:
            known.write(self._folder)
            self._known = known

    def _apply(self) -> str:
        """Replace HAProxy's map where it is not what is known. Returns what prevented that, in words."""
        try:
            trouble = (self._folder / TROUBLE).read_text()
            if trouble:
                return trouble
            text = self._configuration.read_text()
            wanted = self._known.map_for(servers_of(text))
            admin = AdminSocket(_socket_of(text))
            pid = admin.pid()
            if (pid, wanted) != self._applied:
                admin.replace_map(self._folder / MAP, wanted)
                passed_on = admin.pid() != pid  # by a reload meanwhile, so nobody knows which process has the map
                self._applied = None if passed_on else (pid, wanted)
        except OSError as error:
            return f"HAProxy's map of homes cannot be replaced: {error}"
        return ""

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            _log.error("%s", trouble)
        self._trouble = trouble


def _socket_of(text: str) -> Path:
    found = _SOCKET.search(text)
    if found is None:
        raise OSError("its configuration names no admin socket")
    return Path(found[1])


def keep(configuration: Path, manager: int, environment: Mapping[str, str]) -> None:
    """Keep the map until the manager ends."""
    url = store_url(environment)
    assert url is not None
    ended = os.pidfd_open(manager)
    with alone(configuration.parent, manager):
        store = Store(url, environment.get(NAMESPACE) or "default")
        keeper = HomesKeeper(configuration, store, f"{os.uname().nodename}-{manager}")
        while not select.select([ended], [], [], _TURN_SECONDS)[0]:
            try:
                keeper.turn()
            except Exception:
                _log.exception("HAProxy's map of homes is not kept in this turn")


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to everybody; the manager decides
    with suppress(ProcessLookupError):
        keep(Path(sys.argv[1]), int(sys.argv[2]), os.environ)
