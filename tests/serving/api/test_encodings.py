"""Compressed bodies, and bodies in other character sets."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import random
import struct
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
import zstandard
from over_http import Served

from serving.api.encodings import unpack
from serving.errors import BadRequestError, TooLargeError, UnsupportedEncodingError
from serving.service import Service
from serving.store import CHUNK_BYTES
from tests.tiny_checkpoints import Deltas

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.ZstdCompressor(write_content_size=False).compress,
}
BODY = json.dumps({"inputs": ["rain", "sun"]}).encode()
PREDICT = "/v1/tasks/spam/predict"
each_encoding = pytest.mark.parametrize("encoding", PACK)


def flushed_often(data: bytes) -> bytes:
    """A zstd stream as a writer that does not know its length makes it: many blocks, no size in its header."""
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    found = b""
    for at in range(0, len(data), 3000):
        found += packer.compress(data[at : at + 3000]) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return found + packer.flush()


# Unpacking


@each_encoding
@pytest.mark.parametrize("size", [0, 1, 1000, 300_000])
def test_what_was_packed_comes_out_as_it_was(encoding: str, size: int) -> None:
    data = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    assert unpack(PACK[encoding](data), encoding, size) == data


def test_a_stream_of_many_blocks_comes_out_as_it_was() -> None:
    data = random.Random(1).randbytes(200_000)
    assert unpack(flushed_often(data), "zstd", len(data)) == data


@each_encoding
def test_a_body_may_be_as_long_as_allowed_unpacked_and_no_longer(encoding: str) -> None:
    data = bytes(100_000)
    assert unpack(PACK[encoding](data), encoding, 100_000) == data
    with pytest.raises(TooLargeError, match="99999 bytes"):
        unpack(PACK[encoding](data), encoding, 99_999)


@each_encoding
def test_a_bomb_is_refused_before_it_goes_off(encoding: str) -> None:
    bomb = PACK[encoding](bytes(1 << 26))
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError):
            unpack(bomb, encoding, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_the_densest_zstd_there_is_unpacks_in_bounded_memory() -> None:
    """Blocks of one repeated byte: 4 bytes each, that stand for 128 KiB."""
    block = struct.pack("<I", (131_072 << 3) | (1 << 1))[:3] + b"a"
    header = b"\x28\xb5\x2f\xfd" + bytes([0, (20 - 10) << 3])  # a window of 1 MiB, no size
    bomb = header + block * 500_000
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError):
            unpack(bomb, "zstd", 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_a_window_that_needs_too_much_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, write_content_size=False)
    wide = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(BadRequestError, match="memory"):
        unpack(wide.compress(bytes(1000)) + wide.flush(), "zstd", 1 << 20)


@each_encoding
@pytest.mark.parametrize("kept", [1, 5, 0.5, -1])
def test_a_stream_that_was_cut_is_refused(encoding: str, kept: float) -> None:
    packed = PACK[encoding](BODY)
    cut = packed[: int(kept * len(packed)) if isinstance(kept, float) else kept]
    with pytest.raises(BadRequestError, match="ends in the middle"):
        unpack(cut, encoding, 1000)


@each_encoding
@pytest.mark.parametrize("behind", [b"x", b"\0" * 700, None])
def test_what_follows_a_stream_is_refused(encoding: str, behind: bytes | None) -> None:
    packed = PACK[encoding](BODY)
    with pytest.raises(BadRequestError, match=r"\d+ bytes follow the end"):
        unpack(packed + (packed if behind is None else behind), encoding, 1000)


@each_encoding
def test_damage_is_never_more_than_a_refusal(encoding: str) -> None:
    chance = random.Random(7)
    packed = PACK[encoding](BODY * 40)
    for _ in range(2000):
        damaged = bytearray(packed)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        with suppress(BadRequestError, TooLargeError):
            unpack(bytes(damaged), encoding, 2000)


@pytest.mark.parametrize("encoding", ["br", "compress", "gzip, gzip", "gzip, zstd", "utf-8", "*"])
def test_what_is_not_taken_is_refused_and_what_is_taken_named(encoding: str) -> None:
    with pytest.raises(UnsupportedEncodingError, match="gzip, deflate, zstd") as refused:
        unpack(b"", encoding, 1000)
    assert refused.value.headers["Accept-Encoding"] == "gzip, deflate, zstd"


# Over HTTP


@each_encoding
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PREDICT, {"inputs": "rain"}),
        ("/v1/embeddings", {"model": "search", "input": "rain", "encoding_format": "base64"}),
        ("/models/spam", {"inputs": "rain"}),
        ("/models/search/embed", {"inputs": "rain"}),
        (
            "/v2/models/spam/infer",
            {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["rain"]}]},
        ),
    ],
)
def test_every_protocol_takes_it(encoding: str, path: str, body: Any, peers: Served) -> None:
    packed = PACK[encoding](json.dumps(body).encode())
    found = peers.post(path, content=packed, headers={"Content-Encoding": encoding.upper()})
    assert found.status_code == 200, found.text
    assert found.json() == peers.post(path, json=body).json()


async def in_parts(data: bytes, step: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), step):
        yield data[at : at + step]
        await asyncio.sleep(0)


@each_encoding
def test_a_body_may_come_in_parts_of_unknown_length(encoding: str, service: Service, talk: Callable[..., Any]) -> None:
    async def conversation(client: httpx.AsyncClient) -> None:
        content = in_parts(PACK[encoding](BODY), 7)
        found = await client.post(PREDICT, content=content, headers={"Content-Encoding": encoding})
        assert found.status_code == 200, found.text
        assert len(found.json()["outputs"]) == 2

    talk(service, conversation)


@pytest.mark.parametrize(
    ("encoding", "content", "status", "word"),
    [
        ("gzip", gzip.compress(bytes(1 << 24), mtime=0), 413, "16384"),
        ("zstd", zstandard.compress(bytes(1 << 24)), 413, "16384"),
        ("gzip", BODY, 400, "not gzip"),
        ("deflate", gzip.compress(BODY, mtime=0), 400, "not deflate"),
        ("zstd", BODY, 400, "not zstd"),
        ("gzip", gzip.compress(BODY, mtime=0)[:-3], 400, "ends in the middle"),
        ("gzip", gzip.compress(BODY, mtime=0) + b"more", 400, "4 bytes follow the end"),
        ("br", BODY, 415, "gzip, deflate, zstd"),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY, mtime=0), mtime=0), 415, "gzip, gzip"),
        ("gzip", b"", 400, "empty"),
        ("identity", b"", 400, "empty"),
    ],
)
@pytest.mark.parametrize("path", [PREDICT, "/v1/embeddings", "/models/spam", "/models/spam/predict", "/v1/keys"])
def test_refusals_have_the_form_of_the_protocol(
    path: str, encoding: str, content: bytes, status: int, word: str, peers: Served
) -> None:
    refused = peers.post(path, content=content, headers={"Content-Encoding": encoding})
    assert refused.status_code == status, refused.text
    assert word in refused.text
    assert refused.json().keys() & {"error", "detail"}
    assert ("accept-encoding" in refused.headers) == (status == 415)


@pytest.mark.parametrize("encoding", ["identity", "", "identity,identity"])
def test_a_body_as_it_is_may_say_so(encoding: str, peers: Served) -> None:
    assert peers.post(PREDICT, content=BODY, headers={"Content-Encoding": encoding}).status_code == 200


def test_two_headers_are_as_one(peers: Served) -> None:
    twice = [("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")]
    refused = peers.post(PREDICT, content=gzip.compress(gzip.compress(BODY, mtime=0)), headers=twice)
    assert (refused.status_code, refused.headers["accept-encoding"]) == (415, "gzip, deflate, zstd")


def test_what_is_sent_counts_too(peers: Served) -> None:
    """Noise does not get shorter, so what is packed may be longer than what is allowed."""
    refused = peers.post(PREDICT, content=bytes(20_000), headers={"Content-Encoding": "gzip"})
    assert refused.status_code == 413


def test_who_has_no_key_is_told_that_and_has_nothing_unpacked(
    make_service: Callable[..., Service], talk: Callable[..., Any]
) -> None:
    service = make_service(auth="on", admin_token="of-the-admin")

    async def conversation(client: httpx.AsyncClient) -> None:
        for encoding in ("gzip", "br"):
            refused = await client.post("/v1/embeddings", content=BODY, headers={"Content-Encoding": encoding})
            assert refused.status_code == 401

    talk(service, conversation)


@each_encoding
def test_chunks_of_an_upload_are_taken_too(
    encoding: str, service: Service, deltas: Deltas, talk: Callable[..., Any]
) -> None:
    data = deltas.spam_2.path.read_bytes()

    async def conversation(client: httpx.AsyncClient) -> None:
        place, headers = f"/v1/uploads/{deltas.spam_2.digest}/0", {"Content-Encoding": encoding}
        sent = await client.put(place, content=PACK[encoding](data), headers=headers)
        assert (sent.status_code, sent.json()["bytes"]) == (200, len(data))
        too_long = await client.put(place, content=PACK[encoding](bytes(CHUNK_BYTES + 1)), headers=headers)
        assert too_long.status_code == 413
        published = await client.post("/v1/tasks/packed/versions", json={"digest": deltas.spam_2.digest})
        assert published.status_code == 200, published.text

    talk(service, conversation)
    assert hashlib.sha256(data).hexdigest() == deltas.spam_2.digest


# Character sets


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf8"', "us-ascii"])
def test_utf8_may_be_named(charset: str, peers: Served) -> None:
    headers = {"Content-Type": f"application/json; charset={charset}"}
    assert peers.post(PREDICT, content=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize("charset", ["utf-16", "iso-8859-1", "windows-1252", "x" * 300])
def test_another_character_set_is_refused_by_name(charset: str, peers: Served) -> None:
    headers = {"Content-Type": f"application/json; charset={charset}"}
    refused = peers.post(PREDICT, content=BODY, headers=headers)
    assert refused.status_code == 415
    assert charset[:40] in refused.json()["detail"]
    assert "UTF-8" in refused.json()["detail"]
    assert "accept-encoding" not in refused.headers


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BODY.decode().encode("utf-16"), "UTF-16"),
        (BODY.decode().encode("utf-16-le"), "UTF-16 or UTF-32"),
        (BODY.decode().encode("utf-16-be"), "UTF-16 or UTF-32"),
        (BODY.decode().encode("utf-32"), "UTF-16 or UTF-32"),
        ('{"inputs": "caf\u00e9"}'.encode("latin-1"), "not UTF-8 at byte 15"),
        (gzip.compress(BODY, mtime=0), "looks like gzip, but has no Content-Encoding"),
        (zstandard.compress(BODY), "looks like zstd, but has no Content-Encoding"),
        (b'{"inputs": "\\ud800"}', "not JSON"),
        (b"{", "not JSON"),
    ],
)
@pytest.mark.parametrize("path", [PREDICT, "/v1/embeddings", "/v2/models/spam/infer", "/v1/keys"])
def test_what_is_no_utf8_is_told_what_it_is(path: str, content: bytes, words: str, peers: Served) -> None:
    refused = peers.post(path, content=content)
    assert refused.status_code == 400
    assert words in refused.text


def test_a_byte_order_mark_is_passed_over(peers: Served) -> None:
    assert peers.post(PREDICT, content=b"\xef\xbb\xbf" + BODY).status_code == 200
