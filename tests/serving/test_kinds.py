"""The one table of task kinds: what it must hold, and what it must not need."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from serving import pipelines
from serving.kinds import KINDS, Kind
from serving.pipelines import PIPELINES


def test_every_kind_of_the_table_is_answered_and_no_other() -> None:
    assert PIPELINES.keys() == KINDS.keys()
    assert [pipeline.kind for pipeline in PIPELINES.values()] == list(KINDS)


@pytest.mark.parametrize("left_out", Kind.__dataclass_fields__)
def test_a_kind_of_which_a_part_was_forgotten_cannot_be_made(left_out: str) -> None:
    parts = {name: getattr(KINDS["rerank"], name) for name in Kind.__dataclass_fields__ if name != left_out}
    with pytest.raises(TypeError, match=left_out):
        Kind(**parts)


@pytest.mark.parametrize(
    ("name", "module", "found"),
    [
        ("re-rank", "rerank", "no PIPELINE of kind 're-rank'"),
        ("rerank", "logits", "no PIPELINE of kind 'rerank'"),
        ("rerank", "nowhere", "No module named"),
    ],
)
def test_a_kind_whose_pipeline_is_missing_or_another_ends_the_import(
    name: str, module: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "KINDS", {**KINDS, name: replace(KINDS["rerank"], module=module)})
    with pytest.raises(ImportError, match=found):
        pipelines._pipeline_of(name)


def test_a_head_that_would_answer_nothing_by_itself_ends_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "KINDS", {"rerank": KINDS["rerank"]})
    with pytest.raises(ImportError, match="no kind 'text-classification'"):
        pipelines._pipeline_of("rerank")


def test_the_table_needs_no_torch() -> None:
    code = (
        "import sys, serving.kinds, serving.routing.routes, serving.routing.versions; "
        "sys.exit(str([m for m in ('torch', 'transformers', 'ray') if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=100)
    assert not done.stderr.strip(), done.stderr
