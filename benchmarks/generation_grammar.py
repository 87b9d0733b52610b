"""What a grammar costs a token: texts of one task that follow a JSON schema, against texts that follow nothing.

    python -m benchmarks.generation_grammar [--quick] [--json FILE]

Model, tasks and prompts are those of `benchmarks.generation`. The schema is a list of objects without end, so that no
text ends by itself. Both ways take turns in one run. The cost is told twice: the difference of the two ways' steps,
which on a busy machine is mostly noise, and the processor time of a step's grammars, masks included, over that step:
masks are made beside the model, but on the same cores.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers

from benchmarks.bars import Bar
from benchmarks.report import Row, arguments, report
from benchmarks.text_tasks import GREEDY, prepared, prompts_for, running
from ken_core import deltafile
from serving.data_dir import default_data_dir
from serving.demo.smollm2 import smollm2
from serving.engine.cores import usable_cores
from serving.generation.query import GenerationQuery
from serving.grammar.compiling import compiled
from serving.grammar.grammar import Described, Grammar, json_of
from serving.grammar.state import GrammarState
from serving.grammar.vocabulary import Vocabularies
from serving.pipelines.token_ids import TokenIds
from serving.service import Service
from serving.store import Store
from serving.store.embedded import embedded_store
from serving.workers.steps import finish

BAR = Bar("grammar", "grammars of 8 texts: processor time of masks and choices over a step", "<=", 0.03)
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "town": {"enum": ["Rome", "Oslo", "Bern"]},
        "likes": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
    },
    "required": ["name", "age", "town", "likes"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": _PERSON, "minItems": 10_000}


def grammar_rows(service: Service, task: str, prompts: Sequence[Sequence[int]], tokens: int, turns: int) -> list[Row]:
    """What the grammars of texts of one task cost.

    Args:
        prompts: token ids, one prompt a text; the texts are generated at once.
        tokens: to generate after each.
    """
    grammar = json_of(SCHEMA, "benchmark")
    described = Described(grammar.at, lambda: grammar)
    ways: dict[str, Described | None] = {"without a grammar": None, "with a grammar": described}
    gaps: dict[str, list[float]] = {name: [] for name in ways}
    ids: list[int] = []
    for turn in range(turns + 1):
        for name, followed in ways.items():
            found, ids = asyncio.run(_texts(service, task, prompts, tokens, followed))
            gaps[name] += found if turn else []
    steps = {name: statistics.median(found) for name, found in gaps.items()}
    step, with_grammar = steps.values()
    alone = _alone(service, grammar, ids) * len(prompts)
    return [
        *(Row(f"a step of {len(prompts)}, {name}", seconds * 1000, "ms") for name, seconds in steps.items()),
        Row(
            "with a grammar, over without", with_grammar / step, "ratio", f"a step of {len(prompts)}, without a grammar"
        ),
        Row(f"processor time of {len(prompts)} grammars", alone * 1000, "ms"),
        BAR.row(alone / step, f"a step of {len(prompts)}, without a grammar"),
    ]


async def _texts(
    service: Service, task: str, prompts: Sequence[Sequence[int]], tokens: int, grammar: Described | None
) -> tuple[list[float], list[int]]:
    """Seconds from token to token of all texts, and the tokens of the last one."""
    query = GenerationQuery(
        [TokenIds(tuple(ids)) for ids in prompts], GREEDY, max_tokens=tokens, ignores_end=True, grammar=grammar
    )
    times: list[list[float]] = [[] for _ in prompts]
    ids: list[int] = []
    async with service.generate(service.table.resolve(task), query, 600.0) as made:
        async for piece in made:
            times[piece.choice].append(time.perf_counter())
            if piece.choice == len(prompts) - 1:
                ids += [token.id for token in piece.tokens]
    return [after - before for one in times for before, after in itertools.pairwise(one)], ids


def _alone(service: Service, grammar: Grammar, ids: Sequence[int]) -> float:
    """Processor seconds for one token of one grammar: its mask, choosing by it, and taking the token in."""
    encoder = service.engine.tiers.base_encoder
    matcher = finish(compiled(grammar, encoder, Vocabularies()))
    scores = torch.randn(encoder.largest_ids[0] + 1)
    with ThreadPoolExecutor(2) as threads:
        state = GrammarState(matcher, threads, grammar.at)
        began = time.process_time()
        for token in ids:
            time.sleep(0.002)  # the model's turn, which takes no processor time here
            state.restrict(scores, ())
            state.take(token)
        return (time.process_time() - began) / len(ids)


def main() -> None:
    options = arguments(__doc__)
    transformers.utils.logging.set_verbosity_error()
    threads = usable_cores()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name, embedded_store(Path(name) / "store") as url:
        model = prepared(smollm2(default_data_dir() / "demo"), Path(name))
        task, path = next(iter(model.deltas.items()))
        Store(url, "bench").tasks.publish(task, deltafile.open_file(path), "live")
        settings = {"base": str(model.base.folder), "namespace": "bench", "dtype": "float32"}
        with running(url, Path(name), settings) as service:
            prompts = prompts_for(service, 24 if options.quick else 64)
            rows = grammar_rows(service, task, prompts.ids, prompts.tokens, 2 if options.quick else 4)
    report(f"Grammars: SmolLM2-135M, float32, {threads} threads", rows, options.json)


if __name__ == "__main__":
    main()
