import importlib
import pkgutil

import pytest

import ken_core

_HOMES = {
    "__version__": "version",
    "Attached": "resident",
    "Budget": "selection",
    "Calibrated": "calibration",
    "Checkpoint": "checkpoint",
    "Delta": "delta",
    "DeltaFile": "deltafile",
    "Extraction": "extraction",
    "Fingerprint": "fingerprint",
    "MergeRecipe": "merge_recipe",
    "Judges": "judges",
    "PRESETS": "tensor_filter",
    "Part": "merge_parts",
    "ResidentModel": "resident",
    "Selection": "selection",
    "TensorFilter": "tensor_filter",
    "apply": "delta",
    "best_within": "calibration",
    "calibrate": "calibration",
    "combine": "arithmetic",
    "extract": "extraction",
    "fingerprint": "fingerprint",
    "graft": "heads",
    "import_peft": "adapters",
    "judges_for": "judges",
    "load": "deltafile",
    "merge": "delta",
    "open_file": "deltafile",
    "open_base": "checkpoint",
    "open_tuned": "checkpoint",
    "select": "selection",
    "wrap": "checkpoint",
    "write": "deltafile",
}


@pytest.mark.parametrize("name", sorted(ken_core.__all__))
def test_a_public_name_is_what_its_module_defines_whatever_was_imported_before(name):
    for module in pkgutil.iter_modules(ken_core.__path__, "ken_core."):
        importlib.import_module(module.name)
    home = importlib.import_module(f"ken_core.{_HOMES.get(name, 'errors')}")
    assert getattr(ken_core, name) is getattr(home, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        ken_core.nothing_of_that_name  # noqa: B018


def test_every_error_of_the_package_is_a_ken_error():
    from ken_core import errors

    raised = [v for v in vars(errors).values() if isinstance(v, type)]
    assert len(raised) >= 8
    assert all(issubclass(e, errors.KenError) for e in raised)
