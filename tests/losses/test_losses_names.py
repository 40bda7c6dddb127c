"""The names of the papers lead to functions and rooms: in a docstring, and in docs/losses.md."""

from pathlib import Path

from scripts import page_maker

from kdjax import losses

ROOT = Path(__file__).parents[2]


def test_the_page_is_current():
    command = "python docs/make_losses.py > docs/losses.md"
    assert (ROOT / "docs" / "losses.md").read_text() == page_maker("make_losses").page(), (
        f"make it anew: {command}"
    )


def test_every_function_is_in_the_room_of_its_row():
    for row in page_maker("make_losses").rows():
        for name in row.functions:
            assert getattr(losses, name).__module__ == f"kdjax.losses.{row.room}", row


def test_every_public_function_has_one_row_or_is_a_part_of_a_method_that_has_one():
    module = page_maker("make_losses")
    rows, parts = module.rows(), module.parts()
    named = [name for row in rows for name in row.functions]
    assert sorted([*named, *parts]) == sorted(losses.__all__)
    methods = {name for row in rows for name in row.names.split(", ")}
    assert set(parts.values()) <= methods
    assert len(methods) == sum(len(row.names.split(", ")) for row in rows)


def test_names_of_papers_are_found():
    wanted = """
    KD DKD NKD WSLD DIST TTM WTTM MLKD CTKD SKD Tf-KD USKD TAID AKL FitNets hint AT NST FSP FT AB
    OFD VID ReviewKD CAT CWD MGD SimKD SemCKD ICKD PAD SRRL RKD SP CC PKT DarkRank ITRD CRD GKD JSD
    MiniLLM DistiLLM ULD"""
    methods = {name for row in page_maker("make_losses").rows() for name in row.names.split(", ")}
    assert set(wanted.split()) <= methods


def test_every_room_that_holds_a_loss_is_named():
    files = {path.stem for path in (ROOT / "kdjax" / "losses").glob("_*.py")}
    assert {row.room for row in page_maker("make_losses").rows()} == files - {
        "__init__",
        "_inputs",
        "_numbers",
    }
