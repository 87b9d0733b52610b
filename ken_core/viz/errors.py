"""What can go wrong with pictures alone; every other error is the one reading a delta raises."""

from importlib.util import find_spec

from ken_core.errors import KenError


class VizError(KenError):
    """Base of the errors of this package."""


class MissingMatplotlibError(VizError):
    """matplotlib, which is optional, is not installed."""


class NoSuchTensorError(VizError):
    """A pattern that should choose tensors matches none of the base."""


def require_matplotlib() -> None:
    """Raise `MissingMatplotlibError` where it is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingMatplotlibError(
            "pictures are drawn with matplotlib, which is not installed; install it with: pip install 'ken-serve[viz]'"
        )
