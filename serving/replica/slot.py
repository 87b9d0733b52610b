"""The name of a replica: its node's, and the lowest number that no other replica on the node has in its store."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sys
import uuid
from collections.abc import Callable

_log = logging.getLogger(__name__)

_MOST = 10_000


class Slot:
    """A replica's number on its node, from 0. A replica that is started in place of another one gets the same number.

    The number is held by a socket of Linux's abstract namespace. The kernel frees it when the process ends, however it
    ends, and no file is left. Such sockets belong to a network; another machine or container may have the same name.

    Args:
        store: the store's URL, without its password.
        namespace: of the store. Replicas of other namespaces do not count, nor do those of other stores.
        taken: whether a replica that this node cannot see has a name already. By default none has.

    Attributes:
        name: of the replica. Where there are no such sockets, or the name is taken, it is a new one at each start.
    """

    def __init__(self, store: str, namespace: str, taken: Callable[[str], bool] = lambda name: False) -> None:
        self._socket: socket.socket | None = None
        node = os.uname().nodename
        number = self._take(store, namespace) if sys.platform == "linux" else None
        if number is not None and taken(f"{node}-{number}"):
            _log.warning(
                "another replica is called %s-%d, or was until some seconds ago: give each machine or container a name "
                "of its own",
                node,
                number,
            )
            self.release()
            number = None
        if number is None:
            _log.warning("this replica gets a new name at each start, so its tasks find another home at each start")
        self.name = f"{node}-{uuid.uuid4().hex[:8] if number is None else number}"

    def release(self) -> None:
        """Let the next replica have the number. Nothing may be reported under the name any more."""
        if self._socket is not None:
            self._socket.close()

    def _take(self, store: str, namespace: str) -> int | None:
        try:
            held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError as error:
            _log.warning("no socket can be made: %s", error)
            return None
        # Such a name has 107 bytes at most.
        mark = hashlib.sha256(f"{namespace}@{store}".encode()).hexdigest()[:32]
        for number in range(_MOST):
            try:
                held.bind(f"\0ken-serve/{mark}/{number}")
            except OSError:  # another replica has it
                continue
            self._socket = held
            return number
        held.close()
        return None
