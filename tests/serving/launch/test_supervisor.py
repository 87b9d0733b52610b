"""The supervisor, in a process of its own: exit codes, signals, and no processes left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="subreapers are Linux's")


class Supervised:
    """A supervisor that runs `work`, the body of a function, and whose output can be read line by line.

    Args:
        before: statements that run before the supervisor starts.
    """

    def __init__(self, folder: Path, work: str, before: str = "") -> None:
        imports = "import os, signal, subprocess, sys, time\nfrom serving.launch import supervisor\n"
        imports += "supervisor._GRACE_SECONDS = 1.0\nSTOP_SECONDS = 5.0\n"
        body = "".join(f"    {line}\n" for line in work.splitlines())
        supervise = "supervisor.supervise(work, STOP_SECONDS, lambda: print('cleaned'))"
        (folder / "script.py").write_text(f"{imports}{before}def work():\n{body}sys.exit({supervise})\n")
        self.process = subprocess.Popen(
            [sys.executable, "-u", str(folder / "script.py")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def code(self) -> int:
        return self.process.wait(30)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    made: list[Supervised] = []

    def start(*parts: str) -> Supervised:
        made.append(Supervised(tmp_path, *parts))
        return made[-1]

    yield start
    for each in made:
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate()


def is_gone(pid: int) -> bool:
    """Whether a process has ended, or ends in a moment: a killed process takes its time on a busy machine."""
    try:
        process = psutil.Process(pid)
        for _ in range(2000):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            time.sleep(0.01)
    except psutil.NoSuchProcess:
        return True
    return False


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("return 0", 0),
        ("return 7", 7),
        ("sys.exit(3)", 3),
        ("sys.exit('a message')", 1),
        ("raise ValueError('no')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + 9),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)", 128 + 15),
    ],
)
def test_the_childs_end_is_passed_on(work: str, code: int, supervised: Callable[..., Supervised]) -> None:
    assert supervised(work).code() == code


def test_the_error_a_child_dies_of_is_printed(supervised: Callable[..., Supervised]) -> None:
    _, error = supervised("raise ValueError('the reason')").process.communicate(timeout=30)
    assert "ValueError: the reason" in error


def test_a_child_that_leaves_by_itself_without_arguments_is_a_success(
    supervised: Callable[..., Supervised],
) -> None:
    assert supervised("sys.exit()").code() == 0


def test_the_message_a_child_leaves_with_is_printed(supervised: Callable[..., Supervised]) -> None:
    _, error = supervised("sys.exit('no such base')").process.communicate(timeout=30)
    assert "no such base" in error


LISTEN = """
def end(number, frame):
    print("ended by", number)
    sys.exit(5)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, end)
print("up")
time.sleep(20)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_supervisor_reaches_the_child_as_sigterm(
    number: signal.Signals, supervised: Callable[..., Supervised]
) -> None:
    running = supervised(LISTEN)
    assert running.line() == "up"
    running.process.send_signal(number)
    assert running.line() == f"ended by {signal.SIGTERM.value}"
    assert running.code() == 5


def test_a_ctrl_c_to_the_whole_group_reaches_the_child_once_and_as_sigterm(
    supervised: Callable[..., Supervised],
) -> None:
    running = supervised(LISTEN)
    assert running.line() == "up"
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.line() == f"ended by {signal.SIGTERM.value}"
    assert running.line() == ""
    assert running.code() == 5


def test_a_child_learns_of_it_when_its_supervisor_is_killed(supervised: Callable[..., Supervised]) -> None:
    running = supervised(LISTEN)
    assert running.line() == "up"
    running.process.kill()
    assert running.line() == f"ended by {signal.SIGTERM.value}"


KILL_THE_SUPERVISOR_FIRST = """
def setsid():
    supervisor = os.getppid()
    os.kill(supervisor, signal.SIGKILL)
    while os.getppid() == supervisor:
        time.sleep(0.01)
os.setsid = setsid
"""


def test_a_child_whose_supervisor_was_killed_before_the_child_could_be_tied_to_it_does_nothing_but_clean_up(
    supervised: Callable[..., Supervised],
) -> None:
    running = supervised("print('worked')", KILL_THE_SUPERVISOR_FIRST)
    assert [running.line(), running.line()] == ["cleaned", ""]


def test_a_child_told_to_end_before_it_listens_for_signals_cleans_up(supervised: Callable[..., Supervised]) -> None:
    running = supervised("print('up')\ntime.sleep(20)")
    assert running.line() == "up"
    running.process.kill()
    assert [running.line(), running.line()] == ["cleaned", ""]


def test_grandchildren_that_outlive_the_child_are_gone_when_the_supervisor_is(
    supervised: Callable[..., Supervised],
) -> None:
    """One process ignores SIGTERM, one has a session of its own, and one has a child."""
    running = supervised(
        """
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)"
parent = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid); p.wait()"
first = subprocess.Popen([sys.executable, "-uc", stubborn], stdout=subprocess.PIPE)
first.stdout.readline()
second = subprocess.Popen(["sleep", "60"], start_new_session=True)
third = subprocess.Popen([sys.executable, "-uc", parent], stdout=subprocess.PIPE)
print(first.pid, second.pid, third.pid, int(third.stdout.readline()))
return 4
"""
    )
    pids = [int(pid) for pid in running.line().split()]
    assert len(pids) == 4
    assert running.code() == 4
    assert [pid for pid in pids if not is_gone(pid)] == []


def test_grandchildren_of_a_killed_child_are_gone_too(supervised: Callable[..., Supervised]) -> None:
    running = supervised(
        """
print(os.getpid(), subprocess.Popen(["sleep", "60"], start_new_session=True).pid)
time.sleep(60)
"""
    )
    child, grandchild = (int(pid) for pid in running.line().split())
    psutil.Process(child).kill()
    assert running.code() == 128 + 9
    assert is_gone(grandchild)


def test_nothing_is_left_where_descendants_are_killed_neither_zombies_nor_what_was_forked_meanwhile() -> None:
    """Eight that are told to end by nothing, and one that is replaced by its own child every 2 ms: sooner than all
    processes of a machine are looked at. It ends by itself too, after half a minute, and holds no output open."""
    script = """
import os, subprocess, sys, time, psutil
from serving.launch import process_ties, supervisor
process_ties.adopt_orphans()
supervisor._GRACE_SECONDS = 0
for _ in range(8):
    subprocess.Popen(["sleep", "60"])
if os.fork() == 0:
    os.closerange(0, 3)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        time.sleep(0.002)
        if os.fork():
            break
    os._exit(0)
supervisor.end_descendants()
print([process.name() for process in psutil.Process().children()])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "[]\n", ended.stderr


def test_a_grandchild_that_ends_by_itself_in_a_moment_may_do_so(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    running = supervised(
        f"""
subprocess.Popen(["sh", "-c", "sleep 0.3; echo done > {tmp_path}/done"])
return 0
""",
        "supervisor._GRACE_SECONDS = 20.0\n",
    )
    assert running.code() == 0
    assert (tmp_path / "done").read_text() == "done\n"


def test_a_child_that_ends_on_sigterm_in_its_own_time_is_waited_for(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    running = supervised(
        f"""
def end(number, frame):
    time.sleep(0.5)
    open("{tmp_path}/drained", "w").close()
    os._exit(0)
signal.signal(signal.SIGTERM, end)
print("up")
time.sleep(20)
"""
    )
    assert running.line() == "up"
    running.process.terminate()
    time.sleep(0.1)
    running.process.terminate()
    assert running.code() == 0
    assert (tmp_path / "drained").exists()


def test_a_child_that_does_not_end_after_a_signal_is_killed(supervised: Callable[..., Supervised]) -> None:
    running = supervised(
        """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(subprocess.Popen(["sleep", "60"], start_new_session=True).pid)
time.sleep(60)
"""
    )
    grandchild = int(running.line())
    running.process.terminate()
    assert running.code() == 128 + 9
    assert is_gone(grandchild)


ORPHANED = """
def end(number, frame):
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
parent = "import subprocess; p = subprocess.Popen(['sleep', '60'], start_new_session=True); print(p.pid); p.wait()"
child = subprocess.Popen([sys.executable, "-uc", parent], stdout=subprocess.PIPE)
print(child.pid, int(child.stdout.readline()))
time.sleep(20)
"""


def test_a_child_whose_supervisor_was_killed_ends_its_own_descendants_and_cleans_up(
    supervised: Callable[..., Supervised],
) -> None:
    running = supervised(ORPHANED)
    pids = [int(pid) for pid in running.line().split()]
    psutil.Process(pids[0]).kill()  # the other one has no parent of its own any more
    running.process.kill()
    assert running.line() == "cleaned"
    assert [pid for pid in pids if not is_gone(pid)] == []


def test_a_child_leaves_cleaning_up_to_its_supervisor(supervised: Callable[..., Supervised]) -> None:
    running = supervised("print('done'); return 0")
    assert [running.line(), running.line()] == ["done", ""]
