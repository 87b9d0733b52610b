"""Publishing a delta: only the chunks that the server does not have yet are sent.

A file is named by its sha256, so an upload that was cut off goes on where it ended, whoever continues it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Generator
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from serving.client import calls
from serving.client.calls import Call
from serving.client.errors import ClientError
from serving.client.results import Change
from serving.names import check_alias, check_name
from serving.security.signature_file import read_signatures

T = TypeVar("T")
Step = Call[Any] | Callable[[], Any]
"""A call, or work of this machine's own that takes long enough to keep others waiting."""
Flow = Generator[Step, Any, T]
"""Yields steps, is sent the result of each, and returns what came of them all."""

CHUNK_BYTES = 4 << 20


def publish(
    task: str,
    delta: str | PathLike[str] | bytes,
    alias: str = "live",
    *,
    allow_other_labels: bool = False,
    wait: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Flow[Change]:
    """Upload a delta as a version of a task and point an alias at it.

    Signatures that lie beside the file, as ``ken sign`` puts them, are sent along. If it fails half-way, calling it
    again sends only what is missing.

    Args:
        delta: a delta file's path, or its bytes.
        allow_other_labels: also where it answers with other labels, or another kind, than the live version.
        wait: seconds to wait until every replica has seen the change; those that have not are in `Change.pending`.
        progress: called with the bytes that the server has so far and those of the whole delta.

    Raises:
        ClientError: the file cannot be read.
        InvalidInputError: a name no task or alias can have, or a file of signatures that is none.
        ApiError: the server refused it, e.g. for being a delta of another base.
        UnreachableError: no answer came.
    """
    check_name("task", task)  # before anything is sent
    check_alias(alias)
    signatures = () if isinstance(delta, bytes) else read_signatures(Path(delta))
    with _opened(delta) as stream:
        digest = yield partial(_sha256, stream)
        size = stream.seek(0, io.SEEK_END)
        upload = yield calls.upload(digest)
        received = set(upload.received)
        for index, start in enumerate(range(0, size, CHUNK_BYTES)):
            if not upload.complete and index not in received:
                stream.seek(start)
                yield calls.put_chunk(digest, index, stream.read(CHUNK_BYTES))
            if progress is not None:
                progress(min(start + CHUNK_BYTES, size), size)
    change: Change = yield calls.publish_digest(
        task, digest, alias, signatures=signatures, allow_other_labels=allow_other_labels, wait=wait
    )
    return change


def _sha256(stream: io.BufferedIOBase) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _opened(delta: str | PathLike[str] | bytes) -> io.BufferedIOBase:
    if isinstance(delta, bytes):
        return io.BytesIO(delta)
    try:
        return open(delta, "rb")
    except OSError as error:
        raise ClientError(f"{delta} cannot be read: {error.strerror}") from None
