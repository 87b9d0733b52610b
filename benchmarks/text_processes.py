"""Texts of several tasks from one ken process, against a process a task with Transformers' `generate`.

Every process is a child of the benchmark, holds its model, and continues its prompts when it is told to. The processes
of a way are told together; its time is that of the slowest. Memory counts a page shared by n processes as an nth in
each (PSS), with the weights read and one turn done.

    python -m benchmarks.text_processes generate FOLDER THREADS DTYPE   # what a child runs
    python -m benchmarks.text_processes ken URL FOLDER THREADS DTYPE TASK...
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Self, cast

import psutil

Prompts = Sequence[Sequence[int]]


class Child:
    """A process that continues prompts. It is ready inside its ``with`` block and gone after it."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments

    def __enter__(self) -> Self:
        root = str(Path(__file__).resolve().parents[1])
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": self._arguments[-1]}
        command = [sys.executable, "-m", "benchmarks.text_processes", *self._arguments[:-1]]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        cast(IO[str], self._process.stdin).close()
        self._process.wait(60)

    def tell(self, prompts: Prompts, tokens: int) -> None:
        """Have it continue each of the prompts by so many tokens."""
        pipe = cast(IO[str], self._process.stdin)
        pipe.write(json.dumps([list(map(list, prompts)), tokens]) + "\n")
        pipe.flush()

    def wait(self) -> None:
        """Until it has done what it was told."""
        if cast(IO[str], self._process.stdout).readline() != "done\n":
            raise RuntimeError(f"a child ended with exit code {self._process.wait()}")

    def memory(self) -> int:
        """Bytes."""
        return int(psutil.Process(self._process.pid).memory_full_info().pss)


def run(children: Sequence[Child], told: Sequence[tuple[Prompts, int]]) -> None:
    """Have all children continue their prompts at once."""
    for child, (prompts, tokens) in zip(children, told, strict=True):
        child.tell(prompts, tokens)
    for child in children:
        child.wait()


class Children(ExitStack):
    """Both ways: one ken process, and a process a task.

    Args:
        folders: of each task, as `ken apply` writes it.
        threads: of both ways in all; but each process has at least one.
    """

    def __init__(self, url: str, base: Path, folders: Mapping[str, Path], dtype: str, threads: int) -> None:
        super().__init__()
        each = max(1, threads // len(folders))
        self._ken = Child("ken", url, str(base), str(threads), dtype, *folders, str(threads))
        self._others = [Child("generate", str(folder), str(each), dtype, str(each)) for folder in folders.values()]

    def __enter__(self) -> Self:
        super().__enter__()
        for child in (self._ken, *self._others):
            self.enter_context(child)
        return self

    def ways(self, prompts: Prompts, tokens: int) -> dict[str, Callable[[], None]]:
        """Two prompts a task, in order."""
        two = [prompts[2 * place : 2 * place + 2] for place in range(len(self._others))]
        return {
            "one ken process": lambda: run([self._ken], [(prompts, tokens)]),
            "a process a task": lambda: run(self._others, [(some, tokens) for some in two]),
        }

    def memory(self) -> dict[str, int]:
        """Bytes of both ways."""
        return {
            "one ken process": self._ken.memory(),
            "a process a task": sum(child.memory() for child in self._others),
        }


# What a child runs


def _generate(folder: str, threads: str, dtype: str) -> Callable[[Prompts, int], None]:
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.text_tasks import padded_generate

    torch.set_num_threads(int(threads))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    return lambda prompts, tokens: padded_generate(model, prompts, tokens)


def _ken(url: str, base: str, threads: str, dtype: str, *tasks: str) -> Callable[[Prompts, int], None]:
    from benchmarks.text_tasks import continue_all
    from serving.config import load_settings
    from serving.service import Service

    folder = tempfile.mkdtemp()
    settings = {"base": base, "namespace": "bench", "dtype": dtype, "threads": threads, "data_dir": folder}
    service = Service(load_settings(**settings), url)
    service.start()
    return lambda prompts, tokens: continue_all(service, [t for t in tasks for _ in range(2)], prompts, tokens)


def main(kind: str, *arguments: str) -> None:
    ways: dict[str, Any] = {"generate": _generate, "ken": _ken}
    way = ways[kind](*arguments)
    for line in sys.stdin:
        way(*json.loads(line))
        print("done", flush=True)
    os._exit(0)  # a replica's threads would wait for work


if __name__ == "__main__":
    main(*sys.argv[1:])
