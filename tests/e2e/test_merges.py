"""Tasks merged for a request, through the proxy and with real fine-tunes."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path

import httpx
import pytest

from ken_core import MergeRecipe, Part, apply, combine, deltafile, open_base
from serving.client import ApiError, Client, Merge
from serving.launch.server_process import ServerProcess
from tests.e2e.conftest import PublishedTask
from tests.e2e.test_answers import farthest, pipeline_scores
from tests.tiny_checkpoints import scores

pytestmark = pytest.mark.e2e


def test_a_merge_answers_as_its_folder_would_while_other_tasks_are_asked(
    minilm: Path, work: Path, server: ServerProcess, published: list[PublishedTask]
) -> None:
    head, other = published[0], published[2]
    base = open_base(str(minilm))
    parts = [Part(deltafile.load(t.file, base), w, t.digest) for t, w in ((head, 0.8), (other, -0.1))]
    apply(base, combine(base, parts, MergeRecipe("ties", density=0.05)), work / "merged")
    texts = head.texts[:20]
    merge = Merge({head.name: 0.8, other.name: -0.1}, head.name, "ties", density=0.05)
    with Client(server.url, timeout=60) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        merged = [pool.submit(client.predict, merge, text) for text in texts]
        alone = [pool.submit(client.predict, task.name, text) for text in texts for task in published]
        found = [scores(one.result().outputs[0]) for one in merged]
        assert {one.result().merge for one in alone} == {None}
        assert len({one.result().digest for one in merged}) == 1
        metrics = httpx.get(f"{server.url}/metrics").text
    expected = pipeline_scores(PublishedTask("merged", head.file, head.digest, work / "merged", texts), texts)
    assert max(farthest(f, e) for f, e in zip(found, expected, strict=True)) < 1e-5
    assert 'task="@merge"' in metrics


def test_a_task_that_is_not_there_cannot_be_merged(server: ServerProcess, published: list[PublishedTask]) -> None:
    merge = Merge({published[0].name: 1.0, "nothing": 1.0}, published[0].name)
    with Client(server.url, timeout=60) as client, pytest.raises(ApiError, match="no task 'nothing'") as refused:
        client.predict(merge, "rain")
    assert refused.value.status == 404
