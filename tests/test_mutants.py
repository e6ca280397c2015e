"""The mutants still apply to the package, their tests are there, and the page of tests lists them. Nothing is mutated here."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT, Edit, Mutant, NotApplicable, apply, names_in, run, sources, table

MODULES = sources()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_and_its_tests_are_there(mutant: Mutant) -> None:
    assert apply(mutant, MODULES)
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert name in names_in(ROOT / "tests" / file), test


def test_each_name_stands_for_one_fault() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_the_page_of_tests_lists_the_mutants() -> None:
    assert table() in (ROOT / "docs/testing.md").read_text(), "paste `python -m tests.mutants --table`"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (Edit("x = 2", "x = 3"), "stands 0 times"),
        (Edit("y = 1", "y = 2"), "stands 2 times"),
        (Edit("y = 1", "y = 2", after="z = 3"), "does not stand behind"),
        (Edit("x = 1", "x = 1"), "nothing changes"),
        (Edit("x = 1", "x ="), "no Python"),
    ],
)
def test_a_mutant_whose_text_has_changed_is_an_error(edit: Edit, said: str) -> None:
    modules = {"dispatcher/one.py": "x = 1\ny = 1\ny = 1\nz = 3\n"}
    with pytest.raises(NotApplicable, match=said):
        apply(Mutant("wrong", "", (edit,), ()), modules)


def test_what_is_replaced_may_stand_in_other_lines_and_behind_an_anchor() -> None:
    modules = {"dispatcher/one.py": "a = f(\n    1,\n)\nb = 1\nc = 1\n"}
    edits = (Edit("a = f( 1, )", "a = 2"), Edit("= 1", "= 3", after="c"))
    assert apply(Mutant("two", "", edits, ()), modules) == {"dispatcher/one.py": "a = 2\nb = 1\nc = 3\n"}


def test_a_fault_that_no_test_notices_survives(capfd: pytest.CaptureFixture[str]) -> None:
    tests = ("core/text/test_merge_patch.py",)
    noticed = Mutant(
        "noticed", "", (Edit("if value is None:", "if False:", after="def merge(target"),), tests
    )
    unnoticed = Mutant("unnoticed", "", (Edit("__version__ =", "__version__ = _ ="),), tests)
    assert run([noticed, unnoticed]) == ["unnoticed"]
    assert "caught    noticed: core/text/test_merge_patch.py::" in capfd.readouterr().out
