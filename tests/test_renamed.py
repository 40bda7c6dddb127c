"""Names that have moved work for one release, and say where they are now."""

import importlib

import pytest

from kdjax import _renamed


@pytest.mark.parametrize(("old", "new"), _renamed.NEW_NAMES.items())
def test_an_old_name_is_the_new_one_with_a_warning(old, new):
    module, _, name = old.rpartition(".")
    with pytest.warns(DeprecationWarning, match=f"{old} is {new} now") as warned:
        found = getattr(importlib.import_module(module), name)
    where, _, own = new.rpartition(".")
    assert found is getattr(importlib.import_module(where), own)
    assert warned[0].filename == __file__


def test_what_the_readme_and_the_guides_showed_is_in_the_table():
    shown = {
        "experiments.networks.load_network",
        "kdjax.models.rematerialised",
        "kdjax.sweep.stack",
        "kdjax.sweep.make_sweep_step",
        "kdjax.bias.match_class_prior",
        "kdjax.resident.with_examples",
        "kdjax.resident.several",
        "kdjax.sharding.initialise",
        "kdjax.data.centre_crop",
    }
    assert shown <= _renamed.NEW_NAMES.keys()


@pytest.mark.parametrize("room", ["bias", "resident", "sweep"])
def test_a_room_that_has_moved_lists_its_old_names(room):
    moved = [old for old in _renamed.NEW_NAMES if old.startswith(f"kdjax.{room}.")]
    listed = importlib.import_module(f"kdjax.{room}").__all__
    assert [f"kdjax.{room}.{name}" for name in listed] == moved


def test_an_unknown_name_is_an_attribute_error():
    for room in {old.rpartition(".")[0] for old in _renamed.NEW_NAMES}:
        with pytest.raises(AttributeError, match=f"module '{room}' has no attribute 'nothing'"):
            importlib.import_module(room).nothing
