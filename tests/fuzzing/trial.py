"""What must hold of every file: it is refused by an error of ours or can be served, and the base stays the base."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import orjson
import torch

from ken_core import KenError
from serving.engine.engine import Engine
from serving.engine.fitness import Fitness
from serving.errors import InternalError, InvalidInputError
from serving.pipelines import PIPELINES
from serving.pipelines.base import check, check_inputs, refusing_what_its_tokenizer_cannot_read
from serving.telemetry.metrics import Metrics
from serving.tiers.cache import DeltaCache
from serving.tiers.files import DeltaFiles
from serving.workers.steps import finish
from tests.fuzzing.mutations import Draft, mutate
from tests.fuzzing.seeds import Seed, make_all
from tests.tiny_architectures import ArchitectureBase
from tests.tiny_checkpoints import TEXTS

_OTHER_TEXTS = (*TEXTS, "[MASK] <mask> <s> [PAD]", "ﬁ № ½ ～ \u2028 e\u0301", "0" * 70, "a" * 300)
_FOREVER = 1e12


@dataclass(frozen=True)
class Failure:
    """A case that broke the rule, and all it takes to see it again."""

    case: int
    told: tuple[str, ...]
    error: str

    def __str__(self) -> str:
        return f"python -m tests.fuzzing --first {self.case} --cases 1\n  " + "\n  ".join([*self.told, self.error])


@dataclass
class Report:
    """What became of the cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    overflows: int = 0
    """Answers, since the start, that were refused because weights overflowed on that text."""
    grown: int = 0
    """Bytes by which the process's largest size grew."""


class _Bench:
    """A base with a running engine, as a replica has them, but without a store."""

    def __init__(self, base: ArchitectureBase) -> None:
        self.resident = base.resident
        self.files = DeltaFiles(base.folder / "served", 1 << 30, None)
        cache = DeltaCache(self.files, 0, self.resident.checkpoint, self.resident.fingerprint.digest, threads=1)
        self.engine = Engine(self.resident, cache, Metrics(f"fuzz-{base.name}"))
        self.engine.start()
        self.fitness = Fitness(self.resident, self.engine)
        self.overflows = 0
        """Answers that were no numbers, on texts that a delta was not tried with."""

    def serve(self, data: bytes) -> None:
        """Answer texts that the delta was not tried with, as a request is answered."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.files.folder / digest
        path.write_bytes(data)
        try:
            asyncio.run(self._ask_all(digest))
        finally:
            path.unlink()

    async def _ask_all(self, digest: str) -> None:
        loaded = await self.engine.tiers.acquire(digest)
        try:
            for pipeline in (p for p in PIPELINES.values() if p.head == loaded.head):
                for probe in pipeline.probes(_OTHER_TEXTS):
                    checked = check(pipeline.parameters, probe.parameters)
                    inputs = check_inputs(pipeline, [probe.input])
                    try:
                        with refusing_what_its_tokenizer_cannot_read():
                            (prepared,) = finish(pipeline.prepare(inputs, loaded.spec, checked))
                    except InvalidInputError:
                        continue
                    raws, _ = await self.engine.answer(loaded, pipeline, prepared.rows, _FOREVER)
                    try:
                        with refusing_what_its_tokenizer_cannot_read():
                            answer = pipeline.present(prepared, raws, loaded.spec, checked)
                    except InternalError:  # weights may overflow on one text and not on others; that is said
                        self.overflows += 1
                        continue
                    assert b"null" not in orjson.dumps(answer), answer
        finally:
            self.engine.tiers.release(loaded)


class Fuzzing:
    """Runs cases: number in, judgement out.

    Args:
        folder: for bases, seeds and files.
    """

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._folder = folder
        bases, self.seeds = make_all(folder)
        self._benches = {name: _Bench(base) for name, base in bases.items()}

    def close(self) -> None:
        for bench in self._benches.values():
            bench.engine.stop()

    def draft(self, case: int) -> tuple[Seed, Draft]:
        """The file of a case, taken apart; always the same one."""
        seed = self.seeds[case % len(self.seeds)]
        return seed, mutate(Draft.of(seed.file), Random(case))

    def run(self, cases: Iterable[int], progress: Path | None = None) -> Report:
        """Try every case, then compare every base with its checkpoint."""
        report, before = Report(), _largest_size()
        for case in cases:
            seed, draft = self.draft(case)
            if progress is not None:
                progress.write_text(
                    f"{case} {dict(report.outcomes)}\n" + "\n".join([*draft.told, *map(str, report.failures)])
                )
            started = time.perf_counter()
            try:
                refused = self.judge(seed.base, draft.bytes())
            except _BrokenRuleError as error:
                report.failures.append(Failure(case, tuple(draft.told), str(error)))
            else:
                report.outcomes["refused" if refused else "served"] += 1
                if refused:
                    report.reasons[type(refused.__cause__).__name__] += 1
            report.slowest = max(report.slowest, (time.perf_counter() - started, case))
        for name, bench in self._benches.items():
            if differing := bench.engine.verify().result(60):
                report.failures.append(Failure(-1, (name,), f"tensors of the base differ: {differing}"))
        report.overflows = sum(bench.overflows for bench in self._benches.values())
        report.grown = _largest_size() - before
        return report

    def judge(self, base: str, data: bytes) -> InvalidInputError | None:
        """Why a file is refused; None where it was accepted, and then served.

        Raises:
            _BrokenRuleError: neither.
        """
        bench, path = self._benches[base], self._folder / "case.safetensors"
        path.write_bytes(data)
        try:
            bench.fitness.check(path)
        except InvalidInputError as error:
            return error
        except BaseException as error:
            raise _broken("refused wrongly", error) from error
        try:
            bench.serve(data)
        except BaseException as error:
            raise _broken("accepted, and not served", error) from error
        return None


class _BrokenRuleError(Exception):
    """A file was neither refused as it should be nor served."""


def _broken(what: str, error: BaseException) -> _BrokenRuleError:
    if isinstance(error, KeyboardInterrupt):
        raise error
    trace = "" if isinstance(error, KenError) else "\n" + "".join(traceback.format_exception(error)[-4:])
    return _BrokenRuleError(f"{what}: {error!r}{trace}")


def _largest_size() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
