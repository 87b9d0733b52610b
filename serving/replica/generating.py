"""Generation: from a task's prompts to texts that come piece by piece."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from serving.errors import DeadlineError
from serving.generation.query import GenerationQuery
from serving.replica.continuing import Continuing, Generation
from serving.replica.inference import Inference
from serving.routing.merges import Merge


class Generating:
    """Generates texts of tasks, which stay on the device, at their version, until the last token."""

    def __init__(self, inference: Inference, continuing: Continuing) -> None:
        self._inference = inference
        self._continuing = continuing

    @asynccontextmanager
    async def __call__(
        self,
        digest: str,
        query: GenerationQuery,
        timeout: float,
        client: Hashable = None,
        merge: Merge | None = None,
    ) -> AsyncIterator[Generation]:
        """Continue a query's prompts. Leaving the context gives up what is unfinished.

        Args:
            digest: of the task's delta, or of the merge.
            timeout: seconds, for all of it.
            client: who asks; clients take turns on the worker threads.
            merge: the merge of tasks that generates. None: a version of a task does.

        Raises:
            ServingError: as `Inference` and `Continuing` do.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + timeout) as limit:
                async with (
                    self._inference.on_device(digest, len(query.prompts), merge, client) as loaded,
                    self._continuing(loaded, query, started, started + timeout, client) as generation,
                ):
                    limit.reschedule(None)  # from here on the generator keeps the deadline
                    yield generation
        except TimeoutError:
            raise DeadlineError(f"the text was not begun within {timeout:g} s") from None
