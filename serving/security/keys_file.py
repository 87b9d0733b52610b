"""A file of keys, in addition to the keys in the store. Whoever deploys edits it; it is read again when it changes."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from serving.errors import StartError
from serving.security.keys import Key

_log = logging.getLogger(__name__)
_KEYS = TypeAdapter(list[Key])
_Signature = tuple[int, int, int]


class KeysFile:
    """The keys of one file, a JSON list of `Key` records.

    Raises:
        StartError: the file cannot be read, or is not such a list.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signature = self._look()
        self._keys = self._read()

    def current(self) -> list[Key]:
        """The keys that the file holds now. The list is the same object until the file changes.

        If the file becomes unreadable, that is logged once and the keys read last stay valid.
        """
        signature = self._look()
        if signature == self._signature:
            return self._keys
        self._signature = signature
        try:
            self._keys = self._read()
            _log.info("read %d keys from %s", len(self._keys), self._path)
        except StartError as error:
            _log.error("%s; the %d keys read before stay valid", error, len(self._keys))
        return self._keys

    def _look(self) -> _Signature | None:
        """Modification time, size and inode. A file that is replaced within one tick of the clock has another inode."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> list[Key]:
        try:
            keys = _KEYS.validate_json(self._path.read_bytes())
        except OSError as error:
            raise StartError(f"keys file {self._path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise StartError(
                f"keys file {self._path}: {where}: {first['msg']}; expected a JSON list of records such as "
                "`ken keys list --json` prints"
            ) from None
        ids = [key.id for key in keys]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise StartError(f"keys file {self._path}: found id {twice[0]} twice; expected each id once")
        return keys
