"""A classifier's labels: which configs define them without contradiction, and which number a name or integer means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ken_core.errors import CheckpointError, DataError

Label = str | int
"""A label as data files write it. An integer is a name if the model has a label of that name; else it is the model's
number of the label, counted from 0."""


def check_labels(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config whose labels contradict each other.

    Args:
        config: the config, parsed from JSON or made by `PretrainedConfig.to_dict`.
        where: what error messages call the config.

    Raises:
        CheckpointError: `id2label` does not number distinct names 0, 1, …, or `label2id` or `num_labels` contradict it.
    """
    names = config.get("id2label")
    if names is None:
        return
    if not isinstance(names, Mapping):
        raise CheckpointError(f"{where}: id2label is {names!r}; expected names by number")
    numbers = [_number(key) for key in names]
    if None in numbers or sorted(n for n in numbers if n is not None) != list(range(len(numbers))):
        found = ", ".join(str(key) for key in list(names)[:10])
        raise CheckpointError(
            f"{where}: id2label numbers its labels {found}; number them 0, 1, … in the order of the logits"
        )
    _check_names(names, where)
    _check_counterparts(config, {name: int(number) for number, name in names.items()}, where)


def _check_names(names: Mapping[Any, Any], where: str) -> None:
    seen: set[str] = set()
    for number, name in names.items():
        if not isinstance(name, str):
            raise CheckpointError(f'{where}: label {number} is {name!r}; write its name as a string, "{name}"')
        if not _is_unicode(name):
            raise CheckpointError(f"{where}: the name of label {number}, {name!r}, is no valid Unicode")
        if name in seen:
            raise CheckpointError(f"{where}: two labels are called {name!r}; answers name them, so give each its own")
        seen.add(name)


def _check_counterparts(config: Mapping[str, Any], numbers: Mapping[str, int], where: str) -> None:
    """Refuse a `label2id` or `num_labels` that contradicts `id2label`.

    `label2id` often keeps its defaults (LABEL_0, …) beside an `id2label` with other names; that is accepted.
    """
    counterpart = config.get("label2id")
    for name, number in (counterpart if isinstance(counterpart, Mapping) else {}).items():
        if name in numbers and _number(number) != numbers[name]:
            raise CheckpointError(
                f"{where}: {name!r} is label {numbers[name]} in id2label and {number!r} in label2id; "
                "correct the one that is wrong"
            )
    count = config.get("num_labels")
    if count is not None and count != len(numbers):
        raise CheckpointError(
            f"{where}: num_labels is {count!r}, id2label names {len(numbers)}; correct the one that is wrong"
        )


def _number(key: Any) -> int | None:
    try:
        return None if isinstance(key, bool | float) else int(key)
    except (TypeError, ValueError):
        return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def names_of(labels: Sequence[Label]) -> list[str]:
    """The names of the labels that occur, as a new classifier numbers them: integers by value, names by alphabet."""
    numbers = sorted({label for label in labels if isinstance(label, int)})
    return [*map(str, numbers), *sorted({label for label in labels if isinstance(label, str)})]


def numbers_of(labels: Sequence[Label], names: Mapping[int, str]) -> list[int]:
    """The model's number of each label.

    Args:
        labels: names, or integers. Integers are names if the model has labels of all these names (a classifier trained
            on integers calls its labels "0", "1", …); else they are the model's own numbers.
        names: the model's label names, by number.

    Raises:
        DataError: there is a label that the model does not have.
    """
    ids = {str(name): int(number) for number, name in names.items()}
    if {str(label) for label in labels} <= ids.keys():
        return [ids[str(label)] for label in labels]
    numbers = set(ids.values())
    for label in labels:
        if label not in (numbers if isinstance(label, int) else ids):
            known = ", ".join(f"{number} {name!r}" for name, number in sorted(ids.items(), key=lambda item: item[1]))
            raise DataError(f"the examples have the label {label!r}; the model knows {known}")
    return [label if isinstance(label, int) else ids[label] for label in labels]
