"""Errors that only drawing raises; all other errors are those of reading a delta."""

from importlib.util import find_spec

from ken_core.errors import KenError


class VizError(KenError):
    """Base of the errors of this package."""


class MissingMatplotlibError(VizError):
    """The optional package matplotlib is not installed."""


class NoSuchTensorError(VizError):
    """A pattern that should choose tensors matches none of the base."""


def require_matplotlib() -> None:
    """Raise `MissingMatplotlibError` if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingMatplotlibError(
            "pictures are drawn with matplotlib, which is not installed; install it with: pip install 'ken-serve[viz]'"
        )
