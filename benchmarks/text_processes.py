"""Texts of several tasks from one ken process, against a process a task with Transformers' `generate`.

Every process is a child of the benchmark, holds its model, and continues its prompts when it is told to. The processes
of a task run in two ways: all at once, each on an equal share of the threads (but on one at least, so that four have
four where ken has two), and one after another, each on all threads. Ken is compared with the better of the two. Memory
counts a page shared by n processes as an nth in each (PSS), with the weights read and one turn done.

    python -m benchmarks.text_processes generate FOLDER DTYPE   # what a child runs
    python -m benchmarks.text_processes ken URL FOLDER DATA THREADS DTYPE TASK...

The ken process has the variables that `ken serve` gives its replicas.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Self, cast

import psutil

from serving.launch.ray_variables import SHARED

Prompts = Sequence[Sequence[int]]


class Child:
    """A process that continues prompts. It is ready inside its ``with`` block and gone after it."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self._arguments = arguments
        self._environment = environment

    def __enter__(self) -> Self:
        root = str(Path(__file__).resolve().parents[1])
        environment = {**os.environ, "PYTHONPATH": root, "TOKENIZERS_PARALLELISM": "false", **self._environment}
        command = [sys.executable, "-m", "benchmarks.text_processes", *self._arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        cast(IO[str], self._process.stdin).close()
        self._process.wait(60)

    def tell(self, prompts: Prompts, tokens: int, threads: int) -> None:
        """Have it continue each of the prompts by so many tokens, on so many threads."""
        pipe = cast(IO[str], self._process.stdin)
        pipe.write(json.dumps([list(map(list, prompts)), tokens, threads]) + "\n")
        pipe.flush()

    def wait(self) -> None:
        """Until it has done what it was told."""
        if cast(IO[str], self._process.stdout).readline() != "done\n":
            raise RuntimeError(f"a child ended with exit code {self._process.wait()}")

    def memory(self) -> int:
        """Bytes."""
        return int(psutil.Process(self._process.pid).memory_full_info().pss)


def run(children: Sequence[Child], prompts: Sequence[Prompts], tokens: int, threads: int) -> None:
    """Have all children continue their prompts at once, each on so many threads."""
    for child, some in zip(children, prompts, strict=True):
        child.tell(some, tokens, threads)
    for child in children:
        child.wait()


class Children:
    """Both ways: one ken process, and a process a task. They are ready inside the ``with`` block and gone after it.

    Args:
        data: a folder of the ken process's own.
        folders: of each task, as `ken apply` writes it.
        threads: of both ways in all; but each process has at least one.
    """

    def __init__(self, url: str, base: Path, data: Path, folders: Mapping[str, Path], dtype: str, threads: int) -> None:
        self._threads = threads
        waiting = {v.name: v.value for v in SHARED if v.name.startswith("OMP_")}
        self._ken = Child("ken", url, str(base), str(data), str(threads), dtype, *folders, environment=waiting)
        self._others = [Child("generate", str(folder), dtype) for folder in folders.values()]

    def __enter__(self) -> Self:
        with ExitStack() as started:
            for child in (self._ken, *self._others):
                started.enter_context(child)
            self._started = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()

    def ways(self, prompts: Prompts, tokens: int) -> dict[str, Callable[[], None]]:
        """Two prompts a task, in order."""
        others, threads = self._others, self._threads
        two = [prompts[2 * place : 2 * place + 2] for place in range(len(others))]

        def one_after_another() -> None:
            for child, some in zip(others, two, strict=True):
                run([child], [some], tokens, threads)

        return {
            "one ken process": lambda: run([self._ken], [prompts], tokens, threads),
            "a process a task, at once": lambda: run(others, two, tokens, max(1, threads // len(others))),
            "a process a task, one after another": one_after_another,
        }

    def memory(self) -> dict[str, int]:
        """Bytes of both ways."""
        return {
            "one ken process": self._ken.memory(),
            "a process a task": sum(child.memory() for child in self._others),
        }


# What a child runs


def _generate(folder: str, dtype: str) -> Callable[[Prompts, int, int], None]:
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.text_tasks import padded_generate

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def run(prompts: Prompts, tokens: int, threads: int) -> None:
        torch.set_num_threads(threads)
        padded_generate(model, prompts, tokens)

    return run


def _ken(url: str, base: str, data: str, threads: str, dtype: str, *tasks: str) -> Callable[[Prompts, int, int], None]:
    from benchmarks.text_tasks import continue_all
    from serving.config import load_settings
    from serving.service import Service

    settings = {"base": base, "namespace": "bench", "dtype": dtype, "threads": threads, "data_dir": data}
    service = Service(load_settings(**settings), url)
    service.start()
    return lambda prompts, tokens, _: continue_all(service, [t for t in tasks for _ in range(2)], prompts, tokens)


def main(kind: str, *arguments: str) -> None:
    ways: dict[str, Any] = {"generate": _generate, "ken": _ken}
    way = ways[kind](*arguments)
    for line in sys.stdin:
        way(*json.loads(line))
        print("done", flush=True)
    os._exit(0)  # a replica's threads would wait for work


if __name__ == "__main__":
    main(*sys.argv[1:])
