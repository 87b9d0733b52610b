"""What both demonstrations stand on: how they were asked to run, their store, server and log, and their last lines."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.demo.checks import heading
from serving.demo.prepare import DemoError
from serving.launch.server_process import ServerProcess
from serving.store.embedded import embedded_store
from serving.store.urls import printable
from serving.terminal import say


@dataclass(frozen=True)
class Step:
    """A command to try next.

    Attributes:
        what: what it does, in a few words.
        arguments: of `ken`.
    """

    what: str
    arguments: Sequence[str]


@dataclass(frozen=True)
class Stage:
    """How a demonstration is run.

    Attributes:
        base: folder or hub name; None for the demonstration's own.
        redis_url: the store; None for the embedded one.
        data_dir: folder for models, deltas and the embedded store.
        port: of the server; None for a free one.
        clients: number of clients that send requests at the same time.
        keep_serving: keep the server running afterwards, until it is interrupted.
        namespace: of the demonstration's tasks in the store.
    """

    base: str | None
    redis_url: str | None
    data_dir: Path
    port: int | None
    clients: int
    keep_serving: bool
    namespace: str

    @property
    def folder(self) -> Path:
        """For models and deltas."""
        return self.data_dir / "demo"

    @contextmanager
    def serving(self, base: str, number: int) -> Iterator[ServerProcess]:
        """Within it, a server of the base answers. Afterwards it has ended well.

        Args:
            number: of the heading that says so.

        Raises:
            DemoError: the server ended with another exit code than 0.
        """
        with self._store() as url:
            where = "the embedded Valkey" if self.redis_url is None else printable(url)
            heading(number, f"publish to {where}, and serve")
            settings = {"base": base, "redis_url": url, "namespace": self.namespace, "data_dir": str(self.data_dir)}
            server = ServerProcess(settings, self._server_log(), self.port)
            with server:
                yield server
            if server.process.returncode != 0:
                raise DemoError(f"the server ended with exit code {server.process.returncode}")

    @contextmanager
    def _store(self) -> Iterator[str]:
        if self.redis_url is not None:
            yield self.redis_url
            return
        with embedded_store(self.data_dir) as url:
            yield url

    def _server_log(self) -> Path | None:
        """The file for the server's log, since log lines would disturb the tables. None to log to the terminal."""
        if self.keep_serving:
            return None
        log = self.folder / "server.log"
        log.unlink(missing_ok=True)
        say(f"  the server's log: {log}")
        return log

    def wait_for_interrupt(self, server: ServerProcess, commands: Sequence[str]) -> None:
        """Keep the server up until Ctrl-C, and say what it may be asked."""
        say(f"\nthe server keeps running until Ctrl-C; see it in a browser: {server.url}/")
        say("or try:")
        for command in commands:
            say(f"  {command}")
        try:
            server.process.wait()
        except KeyboardInterrupt:
            return

    def serve_again(self, base: str) -> Step:
        """The step that serves the demonstration's tasks once more."""
        store: Mapping[str, str] = {} if self.redis_url else {"--data-dir": str(self.data_dir)}
        options = {"--base": base, "--namespace": self.namespace, **store}
        return Step("serve these tasks again", ["serve", *(word for pair in options.items() for word in pair)])


def show_next(steps: Sequence[Step]) -> None:
    """Say what to try next: commands that work as they stand, on what the demonstration left."""
    say("\nwhat to try next:")
    for step in steps:
        say(f"  # {step.what}")
        say(f"  {shlex.join([_ken(), *step.arguments])}")


def _ken() -> str:
    """`ken`, as it was called: by its path, where the shell would find none or another one."""
    called = sys.argv[0]
    if Path(called).name != "ken":
        return "ken"
    found = shutil.which("ken")
    return "ken" if found is not None and Path(found).samefile(called) else called
