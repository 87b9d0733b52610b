"""Every error this package raises on purpose, so that callers can catch one type."""


class KenError(Exception):
    """Base of all errors meant for people: what was found, what was expected, what to do."""


class CheckpointError(KenError):
    """A base or fine-tuned checkpoint cannot be read or is not usable (missing, no weights, NaN)."""


class CheckpointChangedError(CheckpointError):
    """A checkpoint's file was written to after it was opened, so that its tensors may hold other values by now."""


class SelectionError(KenError):
    """A selection method and budget that do not go together, or a budget out of range."""


class DeltaFormatError(KenError):
    """A delta file is damaged, hostile, or of a version this reader does not know."""


class BaseMismatchError(KenError):
    """A delta belongs to another base than the one at hand."""


class ConfigMismatchError(KenError):
    """A fine-tune changes a config key its backbone reads, so the base's backbone would misread it."""


class DataError(KenError):
    """A file of examples has rows of another form, or labels that do not fit."""


class OutputError(KenError):
    """A file or folder cannot be written: no such folder, no permission, no space."""


class OutputExistsError(OutputError, FileExistsError):
    """What would be written over is kept: give another name, or an empty folder."""


class TextTooLongError(KenError):
    """A text is too long to be encoded: as many characters as are read in one go do not tell its tokens."""


class WholeModelNeededError(KenError):
    """A head asks more of its backbone than the output at hand; its whole model answers instead."""


class ExchangeError(KenError):
    """Injecting a delta failed; the base's weights were restored."""


class PoisonedError(KenError):
    """The resident weights are in an unknown state and must not answer anything."""
