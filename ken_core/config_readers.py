"""Whether anything of a backbone could read a config key.

A key that the config's class does not define may be a note of whoever saved the checkpoint, or something the backbone
looks for all the same (DeBERTa's position buckets). The code itself is asked: a key whose name stands nowhere in the
sources that the backbone is made of cannot change what it computes.
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
    """Every word in the sources of a backbone and its config, and of all of transformers that they lead to.

    About 100 modules, 0.3 s. None where there is no backbone of that config, or no source.
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
    """Names of the modules that what a module uses comes from."""
    for value in list(vars(module).values()):
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(home, str):
            yield home


def is_read(key: str, config_class: type[PretrainedConfig]) -> bool:
    """Whether a config of this class defines a key, or any code of its backbone mentions it.

    Mentions are of whole words, so this errs towards true; a backbone whose sources are not there counts as reading
    every key.
    """
    words = _words(config_class)  # type: ignore[arg-type]  # classes are hashable
    return words is None or key in words or key in config_class.default_config_fields()
