"""Every error this package raises on purpose, so that callers can catch one type."""

from __future__ import annotations

_LEAST = (
    "a delta of this fine-tune has at least {least:,} bytes (head, vectors, tokenizer, manifest); {asked:,} were asked "
    "for; give a larger size"
)


class KenError(Exception):
    """Base of all errors meant for people; messages say what was found, what was expected and what to do."""


class CheckpointError(KenError):
    """A base or fine-tuned checkpoint cannot be read or is not usable (missing, no weights, NaN)."""


class CheckpointChangedError(CheckpointError):
    """A checkpoint's file was written to after it was opened, so its tensors may hold other values by now."""


class SelectionError(KenError):
    """A selection method and a budget do not go together, or the budget is out of range."""


class MergeError(KenError):
    """Deltas cannot be merged: they do not belong together, or the recipe is out of range."""


class TooSmallError(SelectionError):
    """A delta cannot be as small as asked: its head, vectors, tokenizer and manifest alone are larger.

    Attributes:
        least, asked: bytes of the smallest delta, and those that were asked for.
        told: the message, with places for both.
    """

    def __init__(self, least: int, asked: int, told: str = _LEAST) -> None:
        super().__init__(told.format(least=least, asked=asked))
        self.least, self.asked, self.told = least, asked, told

    def beside(self, taken: int) -> TooSmallError:
        """The error about a file of which so many bytes are for something else."""
        return TooSmallError(self.least + taken, self.asked + taken, self.told)


class CalibrationError(KenError):
    """There is nothing to choose from, too little text to judge by, or no delta for which the promise can be made."""


class CheckError(KenError):
    """A delta's answers agree too little with those of the fine-tune that it was made of."""


class DeltaFormatError(KenError):
    """A delta file is damaged, hostile, or of a version this reader does not know."""


class BaseMismatchError(KenError):
    """A delta belongs to another base than the one at hand."""


class ConfigMismatchError(KenError):
    """A fine-tune changes a config key that its backbone reads, so the base's backbone would give wrong answers."""


class DataError(KenError):
    """A file of examples has rows of another form, or labels that do not fit the model."""


class TrainingError(KenError):
    """Training failed: the model does not take these texts, or its loss is no longer a finite number."""


class OutputError(KenError):
    """A file or folder cannot be written: no such folder, no permission, no space."""


class OutputExistsError(OutputError, FileExistsError):
    """The output exists already and is not overwritten: give another name, or an empty folder."""


class TextTooLongError(KenError):
    """A text is so long that the characters read in one go do not determine its tokens."""


class TemplateError(KenError):
    """A chat template raised, fails on the messages, or takes too much time or memory."""


class WholeModelNeededError(KenError):
    """A head asks more of its backbone than the output at hand; its whole model answers instead."""


class UndecodableError(KenError):
    """A backbone cannot generate text here."""


class ExchangeError(KenError):
    """Injecting a delta failed; the base's weights were restored."""


class PoisonedError(KenError):
    """The resident weights are in an unknown state and must not answer anything."""
