"""Deltas in a repository: pushed with their signatures and a section of the card, pulled into a folder of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ken_core import open_file
from serving.hub import card
from serving.hub.errors import HubError
from serving.hub.names import check_delta_file, is_delta_file
from serving.hub.repository import Contents, Repository
from serving.security.signature_file import signature_file

if TYPE_CHECKING:
    from ken_core import DeltaFile

MOST_BYTES = 64 << 30
"""Bytes of the largest delta that is pulled: as many as a store takes."""
_MOST_SIGNATURE_BYTES = 64 << 10
_MOST_CARD_BYTES = 4 << 20


def push(repository: Repository, delta: DeltaFile, name: str, section: str, about: card.About) -> str:
    """Write a delta and the signatures beside its file to a repository, and its section to the card; the commit's hash.

    All of it is one commit. Signatures of an earlier delta of this name are deleted.

    Raises:
        HubError: the Hub refuses it, or the card cannot be read.
    """
    held = repository.contents()
    signed, signatures = signature_file(delta.path), f"{check_delta_file(name)}.sig"
    add: dict[str, Path | bytes] = {name: delta.path}
    if signed.is_file():
        add[signatures] = signed
    text = card.card_with(_card(repository, held), repository.name.rpartition("/")[2], name, section, about)
    add[card.FILE] = text.encode()
    stale = held.files & {signatures} - set(add)
    return repository.commit(add, stale, f"{name}: delta {delta.digest[:12]}", held.commit)


def _card(repository: Repository, held: Contents) -> str | None:
    if card.FILE not in held.files:
        return None
    with TemporaryDirectory() as folder:
        path, _ = repository.download(card.FILE, held.commit, Path(folder), _MOST_CARD_BYTES)
        try:
            return path.read_bytes().decode()
        except UnicodeDecodeError:
            raise HubError(f"{card.FILE} of {repository.url} is not UTF-8; mend it on the Hub") from None


@dataclass(frozen=True)
class Pulled:
    """A delta from a repository, in a folder that lasts as long as the block.

    Attributes:
        delta: opened and checked; the signatures lie beside it, unchecked.
        commit: the repository's commit that it is of.
    """

    delta: DeltaFile
    commit: str


@contextmanager
def pulled(repository: Repository, name: str | None, revision: str | None, beside: Path) -> Iterator[Pulled]:
    """Receive a delta, check it as a delta file, and receive its signatures.

    Args:
        name: of its file; None: the only delta in the repository.
        revision: a branch, a tag or a commit; None: the newest commit.
        beside: the temporary folder is made here, so that the file can be moved away at once.

    Raises:
        HubError: the Hub refuses it, or the repository holds no such delta, or one that is too large.
        DeltaFormatError: the file is no delta, or a damaged one.
    """
    held = repository.contents(revision)
    name = _only(repository, held) if name is None else check_delta_file(name)
    with TemporaryDirectory(dir=beside, prefix=".ken-pull-") as folder:
        path, sha256 = repository.download(name, held.commit, Path(folder), MOST_BYTES)
        if f"{name}.sig" in held.files:
            repository.download(f"{name}.sig", held.commit, Path(folder), _MOST_SIGNATURE_BYTES)
        delta = open_file(path)
        if sha256 not in (None, delta.digest):
            raise HubError(f"{name} arrived with sha256 {delta.digest}, and the Hub names {sha256}; try again")
        yield Pulled(delta, held.commit)


def _only(repository: Repository, held: Contents) -> str:
    names = sorted(name for name in held.files if is_delta_file(name))
    if len(names) != 1:
        told = f"{len(names)} deltas ({', '.join(names[:20])}); name one of them" if names else "no delta"
        raise HubError(f"{repository.url} holds {told}")
    return names[0]
