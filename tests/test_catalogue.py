"""docs/catalogue.md is what its script makes of the code and the results as they are."""

import importlib.util
from pathlib import Path

from kdjax import losses
from kdjax.runs import methods

ROOT = Path(__file__).parents[1]


def maker():
    spec = importlib.util.spec_from_file_location("catalogue", ROOT / "docs" / "make_catalogue.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current():
    command = "python docs/make_catalogue.py > docs/catalogue.md"
    assert (ROOT / "docs" / "catalogue.md").read_text() == maker().page(), (
        f"make it anew: {command}"
    )


def test_every_method_has_a_row_of_what_exists():
    module = maker()
    assert set(module.ROWS) <= set(methods.METHODS)
    counts = module._golden_counts()
    stated = {name for name, row in module.ROWS.items() if row.losses}
    assert stated - {"cwd"} == {name for name in methods.METHODS if not methods.loss_of(name)}
    for name in methods.METHODS:
        found = module.losses_of(name)
        assert found and set(found) <= set(losses.__all__), name
        assert all(map(module._paper, found)), name
    for name, row in module.ROWS.items():
        assert set(row.golden) <= set(counts), name
