"""One task of ``ken add``: its delta extracted, checked against the fine-tune, and published."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving.cli.added import Added
from serving.cli.making import DeltaRecipe
from serving.cli.outcome import recorded, tell_pending
from serving.terminal import counted, error_line, say, warn

if TYPE_CHECKING:
    from ken_core import Checkpoint
    from ken_core.fidelity import Checker, Fidelity
    from ken_core.labels import Label
    from ken_core.progress import Progress
    from ken_core.task_texts import Given
    from serving.cli.backend import Backend

_CHECKING_SHARE = 0.2
"""Of the texts, where the others train the delta's values."""
_LANGUAGE = ("text-generation", "fill-mask")


@dataclass(frozen=True)
class CheckTexts:
    """Texts of a task: all or some check answers, the others train."""

    checking: Sequence[Given]
    labels: Sequence[Label] | None
    training: Sequence[Given] | None
    unused_labels: bool = False
    """Whether the file has labels that are not used, since it is for several tasks."""

    @classmethod
    def read(cls, path: Path, trains: bool, labelled: bool) -> CheckTexts:
        """The texts of a file.

        Args:
            trains: whether a part of them trains.
            labelled: whether labels in it are of one task.
        """
        from ken_core import DataError
        from ken_core.held_out import divide
        from ken_core.task_texts import read_given, same_key

        texts, found = read_given(path)
        labels = found if labelled else None
        unused = found is not None and not labelled
        if not trains:
            return cls(texts, labels, None, unused)
        checking, training = divide(list(map(same_key, texts)), labels, _CHECKING_SHARE)
        if not checking:
            raise DataError(
                f"found {counted(len(training), 'distinct text')} in {path}; expected at least 3, as a fifth checks "
                "and the others train"
            )
        return cls(
            [texts[i] for i in checking],
            None if labels is None else [labels[i] for i in checking],
            [texts[i] for i in training],
            unused,
        )


@dataclass(frozen=True)
class Publishing:
    """How a delta is published, as `ken publish` says."""

    alias: str
    allow_other_labels: bool
    wait: float | None


@dataclass(frozen=True)
class TaskAdder:
    """Makes tasks of fine-tunes of one base, one after another.

    Attributes:
        least: share of answers that must be the fine-tune's.
        folder: for the delta files.
        keeps: whether they stay there.
        backend: to publish to; None: nothing is published.
    """

    base: Checkpoint
    checker: Checker
    recipe: DeltaRecipe
    least: float
    folder: Path
    keeps: bool
    backend: Backend | None

    def task(self, name: str, source: str, texts: CheckTexts | None, publishing: Publishing, watch: Progress) -> Added:
        """Extract, check and publish one task. What fails is told, and is the result's `error`."""
        from ken_core import KenError

        added = Added(name, source)
        try:
            self._extract(added, texts, watch)
            if self.backend is not None:
                self._publish(self.backend, added, publishing)
        except (KenError, OSError) as error:
            added.error = str(error)
            error_line(f"{name}: {added.error}")
        except Exception as error:  # whatever a strange folder leads to, the other tasks are made
            added.error = f"failed in a way that was not foreseen, {type(error).__name__}: {error}"
            error_line(f"{name}: {added.error}\n{traceback.format_exc()}")
        finally:
            if not self.keeps:
                self._path(name).unlink(missing_ok=True)
        return added

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.ken"

    def _extract(self, added: Added, texts: CheckTexts | None, watch: Progress) -> None:
        from ken_core import open_tuned
        from ken_core.errors import CheckError
        from ken_core.manifest import task_kind
        from ken_core.task_texts import inputs_of
        from ken_core.trainer_folder import choose

        chosen = choose(added.source)
        added.folder = chosen.name
        if chosen.why:
            say(f"{added.task}: taking {chosen.name}, {chosen.why}")
        tuned = open_tuned(chosen.name)
        unchecked = _why_unchecked(task_kind(type(tuned.model).__name__), texts)
        if unchecked and self.least > 0:
            raise CheckError(f"{unchecked}; with --least-agreement 0 it is published unchecked")
        checking = None if texts is None else inputs_of(tuned, texts.checking)
        training = None if texts is None or texts.training is None else inputs_of(tuned, texts.training)
        delta, added.file = self.recipe.make(self.base, tuned, self._path(added.task), training, watch)
        for warning in delta.warnings:
            added.warnings.append(warning)
            warn(f"{added.task}: {warning}")
        if unchecked:
            added.warnings.append(f"not checked: {unchecked}")
            warn(f"{added.task}: {added.warnings[-1]}")
        else:
            labels = None if texts is None else texts.labels
            added.fidelity = self.checker(tuned, added.file, checking, labels, progress=watch)
            _check_agreement(added.fidelity, self.least)

    def _publish(self, backend: Backend, added: Added, publishing: Publishing) -> None:
        assert added.file is not None
        change = backend.publish(
            added.task,
            added.file.path,
            publishing.alias,
            allow_other_labels=publishing.allow_other_labels,
            wait=publishing.wait,
        )
        added.revision = change.revision
        say(f"{added.task}@{publishing.alias} is {recorded(backend, added.task, change).digest}")
        tell_pending(change, publishing.wait)


def _why_unchecked(kind: str, texts: CheckTexts | None) -> str:
    """Why answers of a kind cannot be checked on these texts; empty where they can."""
    from ken_core.divergence import COMPARABLE

    if kind not in COMPARABLE:
        return f"answers of the kind {kind!r} cannot be compared with the fine-tune's"
    if kind in _LANGUAGE and texts is None:
        return "how a language model goes on after random tokens says nothing: give --text FILE with texts like its own"
    return ""


def _check_agreement(found: Fidelity, least: float) -> None:
    """Raises `CheckError` where too few answers are the fine-tune's."""
    from ken_core.errors import CheckError

    if least == 0:
        return
    if found.random and found.commonest is not None and found.commonest >= least:
        raise CheckError(
            f"nothing was published, for texts of random tokens tell nothing here: the fine-tune has one answer to "
            f"{found.commonest:.1%} of {found.answers:,} {found.unit}, and so has a delta that is broken; give real "
            "texts with --text, or --least-agreement 0 to publish without a check"
        )
    if found.agreement >= least:
        return
    if found.answers == 0:
        raise CheckError(
            f"nothing was published, for {counted(found.texts, 'text')} said nothing of the order of scores; give "
            "--text with two or more texts that the fine-tune scores differently, or --least-agreement 0 to publish "
            "without a check"
        )
    what = "texts of random tokens" if found.random else "texts"
    real = "give real texts with --text, which judge better; " if found.random else ""
    raise CheckError(
        f"nothing was published, for only {found.agreement:.1%} of {found.answers:,} {found.unit} agree with the "
        f"fine-tune's answers, on {found.texts:,} {what}, and --least-agreement asks for {least:.1%} (mean divergence "
        f"{found.divergence:.4f}); {real}keep more (--size, --keep), fit what is kept (--fit, --distil), or lower "
        "--least-agreement"
    )
