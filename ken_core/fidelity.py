"""How faithfully a delta file answers: its answers beside those of the fine-tune that it was extracted from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from ken_core import deltafile
from ken_core.checkpoint import Checkpoint, open_base
from ken_core.container import DeltaFile
from ken_core.divergence import Answers, at_least_zero, check_comparable, divergence
from ken_core.embedder import Embedder
from ken_core.errors import DataError
from ken_core.heads import graft
from ken_core.labels import Label, numbers_of
from ken_core.passes import MOST_TOKENS, passes
from ken_core.progress import Progress, Stage, silent
from ken_core.random_texts import random_texts
from ken_core.resident import ResidentModel
from ken_core.same_answers import classes_said, gives_scores, same_answers, same_order
from ken_core.teacher import Teacher
from ken_core.tokenization import Encoder, Readable, collate

RANDOM_TEXTS = 128
_BATCH = 32
_OVER_A_VOCABULARY = ("text-generation", "fill-mask")
"""Kinds with logits of every token of a vocabulary, for each token of a text."""
_MOST_SCORES = 1000
"""Texts whose scores are compared pair by pair."""
_BY_TOKEN = ("token-classification", "text-generation", "fill-mask", "feature-extraction")


@dataclass(frozen=True)
class Fidelity:
    """How a delta's answers compare with its fine-tune's.

    Attributes:
        texts: how many both answered.
        random: whether the texts are random tokens. Answers to these say less than answers to real text.
        unit: what answers belong to: ``texts``; ``tokens``, also for vectors where no pooling is declared; or ``pairs
            of texts`` for models that give scores, where an answer is the order of the two.
        answers: how many answers were compared.
        agreement: the share of answers that are the same (`ken_core.same_answers`); NaN where there are none.
        divergence: of the delta's answers from the fine-tune's, the mean over texts (`ken_core.divergence`): in nats
            where answers are classes.
        commonest: the share of the fine-tune's answers that are its commonest one, which a delta that always gives
            that one would agree with; None where answers are no classes.
        accuracy, tuned_accuracy: the share of labels that the delta and the fine-tune find; None without labels.
    """

    texts: int
    random: bool
    unit: str
    answers: int
    agreement: float
    divergence: float
    commonest: float | None = None
    accuracy: float | None = None
    tuned_accuracy: float | None = None


class Checker:
    """Answers with deltas of one base, as a replica does that has read their files.

    Args:
        base: it is opened once more, for the resident copy of its weights.
    """

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._resident = ResidentModel(open_base(str(base.folder)))

    def __call__(
        self,
        tuned: Checkpoint,
        file: DeltaFile,
        texts: Sequence[Readable] | None = None,
        labels: Sequence[Label] | None = None,
        progress: Progress = silent,
    ) -> Fidelity:
        """Compare a delta file with its fine-tune.

        Args:
            tuned: the fine-tune, whose model must not be used elsewhere meanwhile.
            texts: like those that the task answers, or rows of such. None: 128 texts of random tokens.
            labels: of the texts, for classifiers with one label per text; None: there are none.

        Raises:
            CheckpointError: answers of this kind cannot be compared.
            DataError: there is no text; there is a label that the fine-tune does not know, or it gives no one label.
            TrainingError: the fine-tune does not take these texts.
            DeltaFormatError, BaseMismatchError: the file cannot be used.
        """
        check_comparable(file.manifest.kind)
        delta = deltafile.read(file, self._base, self._base.identity.digest)
        encoder = Encoder.of(self._base, delta)
        used = random_texts(encoder, RANDOM_TEXTS) if texts is None else list(texts)
        if not used:
            raise DataError("a delta is checked on texts, and there is none")
        numbers = None if labels is None else _numbers(delta.kind, tuned.config, labels)
        embedder = None if delta.embedding is None else Embedder(delta.embedding, delta.projections)
        compared = _Compared(delta.kind, tuned.config, embedder)
        teacher = Teacher(self._base, tuned)
        attached = self._resident.attach(delta)
        self._resident.activate(attached)
        try:
            with torch.inference_mode(), self._base.unchanged(), tuned.unchanged():
                model = graft(self._resident.backbone, delta.architecture, delta.config, attached.head)
                rows = encoder.rows(used)
                done = 0
                for chosen in passes([len(row) for row in rows], _most_tokens(delta.kind), _BATCH):
                    progress(Stage("checking", f"{len(rows)} texts", done, len(rows)))
                    done += len(chosen)
                    batch = collate([rows[i] for i in chosen], encoder.pad_id, torch.device("cpu"))
                    mask = batch["attention_mask"].bool()
                    compared.add(teacher(batch), dict(model(**batch)), mask, chosen)
        finally:
            self._resident.revert()
        return compared.fidelity(random=texts is None, labels=numbers)


def _most_tokens(kind: str) -> int:
    return MOST_TOKENS if kind in _OVER_A_VOCABULARY else _BATCH * MOST_TOKENS


class _Compared:
    """What was found, batch by batch."""

    def __init__(self, kind: str, config: PretrainedConfig, embedder: Embedder | None) -> None:
        self._kind, self._config, self._embedder = kind, config, embedder
        self._scores = gives_scores(kind, config)
        self._places: list[int] = []
        self._divergence = 0.0
        self._same: list[torch.Tensor] = []
        self._said: list[torch.Tensor] = []
        self._logits: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, first: Answers, second: Answers, mask: torch.Tensor, places: Sequence[int]) -> None:
        """Count in the fine-tune's and the delta's answers to a batch of the texts at these places."""
        self._places += places
        if self._embedder is not None:
            first, second = (_embedded(self._embedder, answers, mask) for answers in (first, second))
            mask = mask[:, :1]
        self._divergence += float(divergence(self._kind, self._config, first, second, mask)) * len(places)
        if self._kind == "text-classification":
            self._logits.append((first["logits"].float(), second["logits"].float()))
        if self._scores:
            return
        self._same.append(same_answers(self._kind, self._config, first, second, mask))
        if (said := classes_said(self._kind, self._config, first, mask)) is not None:
            self._said.append(said)

    def fidelity(self, *, random: bool, labels: list[int] | None) -> Fidelity:
        if self._scores:
            ours, theirs = (torch.cat(side)[:_MOST_SCORES] for side in zip(*self._logits, strict=True))
            same, unit = same_order(ours, theirs), "pairs of texts"
        else:
            same, unit = torch.cat(self._same), "tokens" if self._by_token else "texts"
        tuned, own = (None, None) if labels is None else self._accuracies(labels)
        return Fidelity(
            texts=len(self._places),
            random=random,
            unit=unit,
            answers=len(same),
            agreement=float(same.double().mean()),
            divergence=at_least_zero(self._divergence / len(self._places)),
            commonest=self._commonest,
            accuracy=own,
            tuned_accuracy=tuned,
        )

    @property
    def _commonest(self) -> float | None:
        if not self._said:
            return None
        said = torch.cat(self._said)
        return float(said.unique(dim=0, return_counts=True)[1].max()) / len(said)

    @property
    def _by_token(self) -> bool:
        return self._kind in _BY_TOKEN and self._embedder is None

    def _accuracies(self, labels: list[int]) -> tuple[float, float]:
        expected = np.array(labels)[self._places]
        ours, theirs = (torch.cat(side).argmax(dim=-1).numpy() for side in zip(*self._logits, strict=True))
        return float((ours == expected).mean()), float((theirs == expected).mean())


def _embedded(embedder: Embedder, answers: Answers, mask: torch.Tensor) -> Answers:
    """One vector for each text in place of one for each token."""
    states = answers["last_hidden_state"].double()
    vectors = [embedder(row[real].numpy()) for row, real in zip(states, mask, strict=True)]
    return {"last_hidden_state": torch.from_numpy(np.stack(vectors))[:, None]}


def _numbers(kind: str, config: PretrainedConfig, labels: Sequence[Label]) -> list[int]:
    """The fine-tune's own numbers of the labels."""
    if (
        kind != "text-classification"
        or gives_scores(kind, config)
        or config.problem_type == "multi_label_classification"
    ):
        raise DataError("found labels, but this task does not give each text one label; leave the column label out")
    names: Mapping[Any, str] = config.id2label or {}
    return numbers_of(labels, names)
