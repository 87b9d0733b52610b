"""How two deltas differ, as tables or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import orjson

from serving.cli.delta_facts import facts
from serving.terminal import counted, fact, out, print_json, size, table

if TYPE_CHECKING:
    from ken_core import DeltaFile
    from ken_core.difference import Apart, Difference

_LONGEST = 60
_TOLD = ("base", "architecture", "kind", "method", "codec", "tokenizer", "bytes")


@dataclass(frozen=True)
class Held:
    """What the manifests of two deltas say.

    Attributes:
        first, second: names, as the command line gave them, and facts.
        labels: which names of labels only one has, and whether the same are in another order.
        only_first, only_second: tensors that one of the files holds.
    """

    first: Mapping[str, Any]
    second: Mapping[str, Any]
    labels: Mapping[str, Any]
    only_first: Sequence[str]
    only_second: Sequence[str]

    @classmethod
    def of(cls, name: str, file: DeltaFile, other_name: str, other_file: DeltaFile) -> Held:
        one, other = file.manifest.labels, other_file.manifest.labels
        labels = {
            "only_first": [label for label in one if label not in other],
            "only_second": [label for label in other if label not in one],
            "reordered": sorted(one) == sorted(other) and one != other,
        }
        manifests = (file.manifest, other_file.manifest)
        ours, theirs = ({*m.sparse, *m.lowrank, *m.dense, *m.head} for m in manifests)
        return cls(
            _facts(name, file), _facts(other_name, other_file), labels, sorted(ours - theirs), sorted(theirs - ours)
        )

    @property
    def differs(self) -> list[str]:
        """The names of the facts in which they differ."""
        return [name for name in self.first if name != "name" and self.first[name] != self.second[name]]


@dataclass(frozen=True)
class Compared:
    """Two answers to one input, in a line of a file.

    Attributes:
        agreed: whether they say the same, as a shadow's answer is compared with the one that was given.
        difference: the largest one between scores of the same thing; None: there are none.
    """

    line: int
    input: Any
    first: Any
    second: Any
    agreed: bool
    difference: float | None


def show_json(held: Held, apart: Difference | None, answers: Sequence[Compared] | None, most: int) -> None:
    """Print all that was found, with at most so many changed answers."""
    print_json(
        {
            "first": held.first,
            "second": held.second,
            "differs": held.differs,
            "labels": held.labels,
            "tensors": {"only_first": held.only_first, "only_second": held.only_second},
            "backbone": None if apart is None else _plain(apart),
            "answers": None if answers is None else _plain_answers(answers, most),
        }
    )


def show_tables(held: Held, apart: Difference | None, answers: Sequence[Compared] | None, most: int) -> None:
    """As `show_json`, for people."""
    _show_held(held)
    if apart is not None:
        _show_apart(apart)
    if answers is not None:
        _show_answers(answers, most)


def _facts(name: str, file: DeltaFile) -> dict[str, Any]:
    found = facts(file)
    return {"name": name, **{key: found[key] for key in (*_TOLD, "digest", "fingerprint", "labels", "stored")}}


def _changed(answers: Sequence[Compared]) -> list[Compared]:
    """Answers that changed, the ones whose scores moved most first."""
    return sorted((one for one in answers if not one.agreed), key=lambda one: -(one.difference or 0.0))


def _plain(found: Difference) -> dict[str, Any]:
    positions = found.positions
    return {
        "tensors_only_first": found.only_first,
        "tensors_only_second": found.only_second,
        "positions": {
            **asdict(positions), "jaccard": positions.jaccard, "jaccard_by_chance": positions.jaccard_by_chance
        },
        "shifts": _plain_apart(found.shifts),
        "at_shared_positions": _plain_apart(found.at_shared),
        "head_differs": found.head_differs,
    }  # fmt: skip


def _plain_apart(found: Apart) -> dict[str, Any]:
    return {"elements": found.elements, "cosine": found.cosine, "distance": found.distance}


def _plain_answers(answers: Sequence[Compared], most: int) -> dict[str, Any]:
    changed = _changed(answers)
    return {
        "inputs": len(answers),
        "agreement": 1 - len(changed) / len(answers),
        "changed": [asdict(one) for one in changed[:most]],
    }


def _show_held(held: Held) -> None:
    names = [str(one["name"]) for one in (held.first, held.second)]
    rows = []
    for name in _TOLD:
        pair = [held.first[name], held.second[name]]
        told = [size(one) if name == "bytes" else str(one) for one in pair]
        rows.append([name, *told, "" if pair[0] == pair[1] else "differs"])
    out.print(table("", ["", *_headings(names), ""], rows))
    fact("labels", _labels(held.labels, names))
    if held.first["fingerprint"] != held.second["fingerprint"]:
        fact("base", "they were made against bases of different weights")
    for name, tensors in zip(names, (held.only_first, held.only_second), strict=True):
        if tensors:
            fact("tensors", f"{counted(len(tensors), 'tensor')} in {name} alone, {tensors[0]} for example")


def _headings(names: Sequence[str]) -> list[str]:
    """Files without their folders, if that tells them apart: long paths would push the last column off the screen."""
    last = [name.rpartition("/")[2] or name for name in names]
    return last if last[0] != last[1] else list(names)


def _labels(found: Mapping[str, Any], names: Sequence[str]) -> str:
    if found["reordered"]:
        return "the same, in another order"
    only = zip(names, (found["only_first"], found["only_second"]), strict=True)
    return "; ".join(f"only in {name}: {', '.join(labels)}" for name, labels in only if labels) or "the same"


def _show_apart(found: Difference) -> None:
    positions = found.positions
    if positions.first or positions.second:
        fact(
            "positions",
            f"{positions.first:,} and {positions.second:,} kept, {positions.both:,} in both: Jaccard "
            f"{positions.jaccard:.4f}, by chance {positions.jaccard_by_chance:.4f}",
        )
    for what, apart in (("shifts", found.shifts), ("at shared", found.at_shared)):
        fact(
            what,
            f"cosine {apart.cosine:.4f}, distance {apart.distance:.4f} of their length, {apart.elements:,} elements",
        )
    fact("head", "differs" if found.head_differs else "the same")


def _show_answers(answers: Sequence[Compared], most: int) -> None:
    changed = _changed(answers)
    fact("answers", f"{1 - len(changed) / len(answers):.1%} of {len(answers):,} agree, {len(changed):,} changed")
    rows = [[str(one.line), _short(one.input), _said(one.first), _said(one.second)] for one in changed[:most]]
    if rows:
        title = "changed answers" + (f", {most} of {len(changed)}" if len(changed) > most else "")
        out.print(table(title, ["line", "input", "first", "second"], rows))


def _said(output: Any) -> str:
    """The best answer and its score, where there is one; else the beginning of the output."""
    best = output[0] if isinstance(output, list) and output else output
    if isinstance(best, dict) and "score" in best:
        said = next((best[key] for key in ("label", "answer", "entity_group", "entity", "index") if key in best), "")
        return f"{_short(said)} {best['score']:.3f}"
    return _short(output)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return " ".join(text[: 2 * _LONGEST].split())[:_LONGEST]
