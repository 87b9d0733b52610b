"""Mutated delta files by the hundred: each is refused by name or can be served, and costs no more memory than it may.

A failure names its case: ``python -m tests.fuzzing --first N --cases 1`` makes the same file again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import transformers

from tests.fuzzing.trial import Fuzzing, Report

_MOST_GROWN = 512 << 20
_SMALL, _CHUNK, _ALL = 150, 1000, 20_000


@pytest.fixture(scope="module")
def fuzzing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzing]:
    transformers.utils.logging.set_verbosity_error()
    made = Fuzzing(tmp_path_factory.mktemp("fuzzing"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of files whose models fail leave thousands of tracebacks in it."""
    caplog.set_level(logging.CRITICAL)


def check(report: Report, cases: int) -> None:
    assert not report.failures, "\n\n".join(map(str, report.failures))
    assert sum(report.outcomes.values()) == cases
    assert report.grown < _MOST_GROWN
    # a fuzzer whose every file is refused, or none, tries nothing
    assert cases / 20 < report.outcomes["served"] < cases / 2


def test_the_files_that_mutations_start_from_are_served(fuzzing: Fuzzing) -> None:
    for seed in fuzzing.seeds:
        assert fuzzing.judge(seed.base, seed.file.path.read_bytes()) is None


def test_a_case_is_the_same_file_every_time(fuzzing: Fuzzing) -> None:
    for case in range(20):
        assert fuzzing.draft(case)[1].bytes() == fuzzing.draft(case)[1].bytes()


def test_a_mutated_file_is_refused_by_name_or_can_be_served(fuzzing: Fuzzing) -> None:
    check(fuzzing.run(range(_SMALL)), _SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(_SMALL, _SMALL + _ALL, _CHUNK))
def test_twenty_thousand_mutated_files_are_refused_by_name_or_can_be_served(fuzzing: Fuzzing, first: int) -> None:
    check(fuzzing.run(range(first, first + _CHUNK)), _CHUNK)
