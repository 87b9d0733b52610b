"""The groups in which ``ken --help`` lists the commands. What only ken-serve can run is marked where it is missing."""

from __future__ import annotations

from importlib.util import find_spec

_NEEDS = "" if find_spec("torch") else " (need ken-serve: pip install ken-serve)"

DELTAS = f"Fine-tunes and their deltas{_NEEDS}"
FILES = "Delta files"
TASKS = "Tasks, versions and keys, in a store or through a server"
ASKING = "Ask and watch"
SERVING = f"Run a server{_NEEDS}"
