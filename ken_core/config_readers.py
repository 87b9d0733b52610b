"""Config keys that a backbone could read, found by searching its source code for their names.

A key that the config's class does not define may be a mere note by the program that saved the checkpoint, or something
that the backbone looks for nevertheless (DeBERTa's position buckets). A key whose name stands nowhere in the backbone's
source code cannot change what the backbone computes.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

from transformers import AutoModel, PretrainedConfig

_WORD = re.compile(r"\w+")


@lru_cache(maxsize=16)
def _words(config_class: type[PretrainedConfig]) -> frozenset[str] | None:
    """Every word in the source code of a backbone, of its config, and of all modules of transformers that they use.

    This reads about 100 modules and takes 0.3 s. None where no backbone has that config, or the source code is missing.
    """
    backbone = AutoModel._model_mapping.get(config_class, None)
    classes = backbone if isinstance(backbone, tuple) else (backbone,)
    if None in classes:
        return None
    waiting = [c.__module__ for one in (*classes, config_class) for c in one.__mro__]
    words: set[str] = set()
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name in seen or module is None or not name.startswith("transformers."):
            continue
        seen.add(name)
        try:
            words.update(_WORD.findall(inspect.getsource(module)))
        except (OSError, TypeError):
            return None
        waiting.extend(_homes(module))
    return frozenset(words)


def _homes(module: ModuleType) -> Iterator[str]:
    """Names of the modules from which a module takes the values it uses."""
    for value in list(vars(module).values()):
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(home, str):
            yield home


def is_read(key: str, config_class: type[PretrainedConfig]) -> bool:
    """Whether a config of this class defines a key, or any code of its backbone mentions the key.

    A mention is the key as a whole word anywhere in the source code, so the answer errs towards true. A backbone whose
    source code is missing counts as reading every key.
    """
    words = _words(config_class)  # type: ignore[arg-type]  # classes are hashable
    return words is None or key in words or key in config_class.default_config_fields()
