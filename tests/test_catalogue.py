"""docs/catalogue.md is what its script makes of the code and the results as they are."""

from pathlib import Path

from scripts import page_maker

from kdjax import losses
from kdjax.runs import methods

ROOT = Path(__file__).parents[1]


def test_the_page_is_current():
    command = "python docs/make_catalogue.py > docs/catalogue.md"
    assert (ROOT / "docs" / "catalogue.md").read_text() == page_maker("make_catalogue").page(), (
        f"make it anew: {command}"
    )


def test_every_method_has_a_row_of_what_exists():
    module = page_maker("make_catalogue")
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
