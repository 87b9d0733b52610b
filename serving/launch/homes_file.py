"""What a HAProxy's next process needs to know of the placement, in a file beside its configuration.

`homes_keeper` writes the file, and `haproxy_start` reads it: the servers have other names after each start, so the map
must be written anew before HAProxy reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.launch.haproxy_homes import SLACK, map_of, replicas_of
from serving.placement.choices import Choices, of_servers

_FILE = "homes.json"


@dataclass(frozen=True)
class KnownHomes:
    """The replicas to ask by task, Serve's id of each replica, and `haproxy_homes.slack_for` all proxies."""

    asked: Mapping[str, Choices] = field(default_factory=dict)
    ids: Mapping[str, str] = field(default_factory=dict)
    slack: int = SLACK

    def map_for(self, servers: list[str]) -> str:
        """The text of the map for a HAProxy with these servers."""
        return map_of(of_servers(self.asked, replicas_of(servers, self.ids)))

    def write(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        written = folder / f"{_FILE}.new"
        written.write_text(json.dumps({"asked": self.asked, "ids": self.ids, "slack": self.slack}))
        written.replace(folder / _FILE)

    @staticmethod
    def read(folder: Path) -> KnownHomes:
        """The file's content; nothing is known if there is no such file yet."""
        try:
            plain = json.loads((folder / _FILE).read_text())
            asked = {key: tuple(tuple(one) for one in choices) for key, choices in plain["asked"].items()}
            return KnownHomes(asked, plain["ids"], int(plain["slack"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return KnownHomes()
