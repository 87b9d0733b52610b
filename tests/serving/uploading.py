"""Publishing a delta over HTTP: its chunks, then the version."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx

from serving.store import CHUNK_BYTES


async def upload(client: httpx.AsyncClient, data: bytes, chunk: int = CHUNK_BYTES) -> str:
    """Send all chunks of a delta file; its digest."""
    digest = hashlib.sha256(data).hexdigest()
    for i in range(0, len(data), chunk):
        response = await client.put(f"/v1/uploads/{digest}/{i // chunk}", content=data[i : i + chunk])
        assert response.status_code == 200, response.text
    return digest


async def publish(client: httpx.AsyncClient, task: str, digest: str, **body: Any) -> httpx.Response:
    """Make what was uploaded a version of a task."""
    return await client.post(f"/v1/tasks/{task}/versions", json={"digest": digest, "wait": 20} | body)
