"""A signal ends long work, whatever the work was doing when it came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from serving.interruption import watched

FINALIZING = """
import os, signal, sys, time
from ken_core.progress import Stage
from serving.terminal import staged

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts the tests may ignore it

class Ended:
    def __del__(self):
        os.kill(os.getpid(), {number})
        time.sleep(0.2)

with staged() as tell:
    for done in range(50):
        if done == 3:
            Ended()
            print("went on", flush=True)
        tell(Stage("selecting", "a tensor", done, 50))
        print(done, flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_in_a_finalizer_ends_the_work_at_the_next_tensor(number: int, code: int) -> None:
    command = [sys.executable, "-c", FINALIZING.format(number=int(number))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout.split("\n") == ["0", "1", "2", "went on", ""]
    assert ended.returncode == code
    assert "Exception ignored" in ended.stderr  # or else the finalizer was none


def test_handlers_are_put_back() -> None:
    own = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with watched():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, own)


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with watched() as check:
            os.kill(os.getpid(), signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_work_on_another_thread_is_watched_by_nobody() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with watched() as check:
                check()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []
