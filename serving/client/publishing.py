"""Publishing a delta. Only the chunks that the server does not have yet are sent.

An upload is named by the file's sha256, so anybody can continue an interrupted upload where it stopped.
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
"""A call, or local work that would block an event loop for too long, such as hashing a file."""
Flow = Generator[Step, Any, T]
"""A generator that yields steps, is sent the result of each, and returns the result of all of them."""

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

    Signatures that ``ken sign`` wrote beside the file are sent along. After a failure, another call sends only the
    chunks that are still missing.

    Args:
        delta: a delta file's path, or its bytes.
        allow_other_labels: accept a delta whose labels or kind differ from the live version's.
        wait: seconds to wait until every replica has seen the change; `Change.pending` names those that have not.
        progress: called with the number of bytes that the server has so far, and with the delta's number of bytes.

    Raises:
        ClientError: the file cannot be read.
        InvalidInputError: no task or alias can have this name, or the file of signatures is malformed.
        ApiError: the server refused the delta, e.g. since it belongs to another base.
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
