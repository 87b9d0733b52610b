"""Tokenizers of tasks on a replica: tasks that encode alike share one."""

from __future__ import annotations

import hashlib
import threading
from weakref import WeakValueDictionary

from ken_core import Checkpoint, Delta
from ken_core.tokenization import Encoder


class Encoders:
    """Gives tasks their tokenizers. May be called from many threads; a tokenizer lives as long as a task holds it.

    Args:
        base: whose tokenizer tasks have that bring none.
    """

    def __init__(self, base: Checkpoint) -> None:
        self.of_base = Encoder(base, base.config, {})
        self._base = base
        self._lock = threading.Lock()
        self._shared: WeakValueDictionary[bytes, Encoder] = WeakValueDictionary()

    def of(self, delta: Delta) -> Encoder:
        """A task's tokenizer.

        Raises:
            CheckpointError: what the delta brings is no usable one.
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
    """A digest of all that decides how a delta's texts are encoded on one base."""
    own = delta.embedding
    files = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(delta.files.items())]
    limits = None if own is None else (own.max_length, own.lowercase)
    return hashlib.sha256(repr((files, limits)).encode()).digest()
