"""Compressed bodies, as ``Content-Encoding`` names them: unpacked before a route reads them, within the body's limit.

Formats: gzip is RFC 1952, deflate RFC 1950, zstd RFC 8878. A body is one stream of its format and nothing else.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Protocol

import zstandard
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.middleware import UnreadBodyError, too_long
from serving.errors import BadRequestError, ServingError, UnsupportedEncodingError

_GZIP, _ZLIB = 31, 15  # as zlib's `wbits`
_ZSTD_WINDOW = 8 << 20  # bytes; RFC 9659: over HTTP no reader has to support more
_ZSTD_STEP = 256
"""Bytes of zstd that are unpacked at once. A block has at least 4 bytes and unpacks to at most 128 KiB, so these bytes
unpack to 8 MiB at most."""


class _Stream(Protocol):
    """Unpacks one stream. Each call returns the bytes that it unpacked, never many more than `room`."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, room: int, /) -> bytes: ...


class _Zstd:
    def __init__(self) -> None:
        self._inner = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
        self._left = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data + self._left

    def decompress(self, data: bytes, room: int, /) -> bytes:
        found = bytearray()
        for at in range(0, len(data), _ZSTD_STEP):
            found += self._inner.decompress(data[at : at + _ZSTD_STEP])
            if self._inner.eof or len(found) > room:
                self._left = data[at + _ZSTD_STEP :]
                break
        return bytes(found)


_STREAMS: dict[str, Callable[[], _Stream]] = {
    "gzip": lambda: zlib.decompressobj(_GZIP),
    "x-gzip": lambda: zlib.decompressobj(_GZIP),
    "deflate": lambda: zlib.decompressobj(_ZLIB),
    "zstd": _Zstd,
}


class Unpacked:
    """Hands routes the unpacked bodies of requests that were compressed.

    A body is unpacked when a route reads it, so that a client that may not send one is refused first. `BodyLimit`,
    which is around this middleware, bounds the time and the size of the packed body.

    Args:
        limit_of: the most bytes that a body under a path may have, unpacked.
    """

    def __init__(self, app: ASGIApp, limit_of: Callable[[str], int]) -> None:
        self._app = app
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = _encoding(scope) if scope["type"] == "http" else ""
        if not encoding:
            await self._app(scope, receive, send)
            return
        limit, complete = self._limit_of(scope["path"]), False

        async def unpacked() -> Message:
            nonlocal complete
            if complete:
                return await receive()
            complete = True
            packed = await _whole(receive)
            try:
                body = await asyncio.to_thread(unpack, packed, encoding, limit) if packed else b""
            except ServingError as error:
                raise UnreadBodyError(error) from None
            return {"type": "http.request", "body": body, "more_body": False}

        named = (b"content-encoding", b"content-length")
        plain = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name not in named]}
        await self._app(plain, unpacked, send)


def unpack(packed: bytes, encoding: str, limit: int) -> bytes:
    """Unpack a body. Never makes many more than `limit` bytes.

    Raises:
        UnsupportedEncodingError: the server does not read this encoding, or there are several.
        TooLargeError: the body has more than `limit` bytes, unpacked.
        BadRequestError: the body is damaged or cut off, or something follows it.
    """
    if encoding not in _STREAMS:
        taken = ", ".join(name for name in _STREAMS if not name.startswith("x-"))
        raise UnsupportedEncodingError(
            f"Content-Encoding is {encoding[:40]!r}; expected one of {taken}, or an uncompressed body"
        )
    stream = _STREAMS[encoding]()
    try:
        body = stream.decompress(packed, limit + 1)
    except (zlib.error, zstandard.ZstdError) as error:
        raise BadRequestError(f"the body is not {encoding}, though its Content-Encoding says so: {error}") from None
    if len(body) > limit:
        raise too_long(limit)
    if not stream.eof:
        raise BadRequestError(f"the body ends in the middle of its {encoding} stream")
    if stream.unused_data:
        raise BadRequestError(
            f"{len(stream.unused_data)} bytes follow the end of the body's {encoding} stream; send one stream alone"
        )
    return body


def _encoding(scope: Scope) -> str:
    """The body's encoding; empty for an uncompressed body. Several are joined with commas, which is refused."""
    named = ",".join(Headers(scope=scope).getlist("content-encoding")).lower()
    return ", ".join(one for one in map(str.strip, named.split(",")) if one not in ("", "identity"))


async def _whole(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
