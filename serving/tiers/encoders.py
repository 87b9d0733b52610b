"""Tokenizers of the tasks on a replica. Tasks that encode alike share one tokenizer."""

from __future__ import annotations

import hashlib
import threading
from weakref import WeakValueDictionary

from ken_core import Checkpoint, Delta
from ken_core.tokenization import Encoder


class Encoders:
    """Gives tasks their tokenizers. Threads may share it. A tokenizer lives as long as a task holds it.

    Args:
        base: its tokenizer serves every task that encodes as the base does.
    """

    def __init__(self, base: Checkpoint) -> None:
        self.of_base = Encoder(base, base.config, {})
        self._base = base
        self._lock = threading.Lock()
        self._shared: WeakValueDictionary[bytes, Encoder] = WeakValueDictionary()

    def of(self, delta: Delta) -> Encoder:
        """The tokenizer of a delta's task.

        Raises:
            CheckpointError: the delta's tokenizer files make no usable tokenizer.
        """
        if not delta.encodes_otherwise:
            return self.of_base
        key = _key(delta)
        with self._lock:
            found = self._shared.get(key)
            if found is None:
                found = self._shared[key] = Encoder.of(self._base, delta)
            return found


def _key(delta: Delta) -> bytes:
    """A digest of everything that decides how a delta's texts are encoded, given the base."""
    own = delta.embedding
    files = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(delta.files.items())]
    limits = None if own is None else (own.max_length, own.lowercase)
    return hashlib.sha256(repr((files, limits)).encode()).digest()
