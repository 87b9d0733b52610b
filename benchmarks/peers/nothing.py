"""A handler that reads a request and answers at once.

python -m benchmarks.peers.nothing PORT
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

_START: Any = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
_BODY: Any = {"type": "http.response.body", "body": b"{}"}


async def application(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send(_START)
    await send(_BODY)


if __name__ == "__main__":
    uvicorn.run(application, port=int(sys.argv[1]), log_level="warning", access_log=False, lifespan="off")
