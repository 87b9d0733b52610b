"""Whether a delta can be served here: everything loading it does, done before anybody can ask for it."""

from __future__ import annotations

from pathlib import Path

from ken_core import DeltaFile, KenError, ResidentModel, deltafile, graft
from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError, ServingError
from serving.pipelines import default_kind


def check_fitness(path: Path, resident: ResidentModel) -> DeltaFile:
    """Open a delta of unknown origin, decode all of it, and put its head on the resident backbone without running it.

    Raises:
        InvalidInputError: it is no sound delta, of another base, or of a kind that is not served here.
    """
    try:
        file = deltafile.open_file(path)
        delta = deltafile.read(file, resident.checkpoint, resident.fingerprint.digest)
        default_kind(delta.kind, delta.embedding is not None)
        attached = resident.attach(delta, materialised=bool(delta.lowrank))
        graft(resident.backbone, delta.architecture, delta.config, attached.head)
        if delta.encodes_otherwise:
            Encoder.of(resident.checkpoint, delta)
    except ServingError as error:
        raise InvalidInputError(f"the delta cannot be served here: {error}") from error
    except KenError as error:
        # a temporary file's name says nothing to whoever uploaded it
        raise InvalidInputError(f"the delta cannot be served here: {str(error).replace(path.name, 'it')}") from error
    return file
