"""Commands to a running HAProxy through its admin socket. See HAProxy's management guide, "Unix Socket commands"."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

_SECONDS = 5.0
_ANSWER_BYTES = 65536
_PAYLOAD = 8_000
"""Characters of entries in one command, which HAProxy reads whole, into a buffer of `tune.bufsize`: 16384 or more."""
_VERSION = re.compile(r"New version created: (\d+)")
_PID = re.compile(r"^Pid: (\d+)$", re.MULTILINE)


class AdminSocket:
    """HAProxy's admin socket.

    Raises, in every method:
        OSError: HAProxy does not answer, or refuses the command.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def pid(self) -> int:
        """The process that answers on the socket. A reload passes the socket on to another process."""
        answer = self.ask("show info")
        found = _PID.search(answer)
        if found is None:
            raise OSError(f"HAProxy does not say its process id: {answer[:200]!r}")
        return int(found[1])

    def replace_map(self, file: Path, text: str) -> None:
        """Replace all entries of a map at once: a request finds either the old ones or the new ones.

        Args:
            file: the path by which HAProxy's configuration names the map.
            text: lines of key and value.
        """
        answer = self.ask(f"prepare map {file}")
        found = _VERSION.search(answer)
        if found is None:
            raise OSError(f"HAProxy does not prepare the map {file}: {answer.strip()[:200]}")
        for entries in _chunks(text):
            self._do(f"add map @{found[1]} {file} <<\n{entries}")
        self._do(f"commit map @{found[1]} {file}")

    def ask(self, command: str) -> str:
        """HAProxy's answer to a command."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
            asked.settimeout(_SECONDS)
            asked.connect(str(self._path))
            asked.sendall(f"{command}\n".encode())
            answer = bytearray()
            while got := asked.recv(_ANSWER_BYTES):
                answer += got
        return answer.decode(errors="replace")

    def _do(self, command: str) -> None:
        """Send a command that says nothing where it succeeds."""
        if said := self.ask(command).strip():
            raise OSError(f"HAProxy refuses `{command.partition(chr(10))[0]}`: {said[:200]}")


def _chunks(text: str) -> Iterator[str]:
    """Whole lines, together as many as one command may have."""
    chunk, size = list[str](), 0
    for line in text.splitlines(keepends=True):
        if chunk and size + len(line) > _PAYLOAD:
            yield "".join(chunk)
            chunk, size = [], 0
        chunk.append(line)
        size += len(line)
    if chunk:
        yield "".join(chunk)
