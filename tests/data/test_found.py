"""What is said of the classes that were found."""

from __future__ import annotations

from datasets import Dataset

from foretaste.data import class_notes


def rows(*counts: int) -> Dataset:
    return Dataset.from_dict({"label": [number for number, count in enumerate(counts) for _ in range(count)]})


def test_every_class_with_its_rows() -> None:
    assert class_notes(["negative", "positive"], rows(40, 41)) == [
        "2 classes, with their training rows: negative (40), positive (41)"
    ]
    assert class_notes(["no", "yes"], rows(5, 5), of="data seed 3") == [
        "2 classes, with their training rows of data seed 3: no (5), yes (5)"
    ]


def test_names_that_differ_in_case_or_white_space_only() -> None:
    notes = class_notes(["Negative", "negative", "negative ", "positive"], rows(40, 30, 3, 0))
    assert notes == [
        "4 classes, with their training rows: Negative (40), negative (30), 'negative ' (3), positive (0)",
        "classes 'Negative', 'negative', 'negative ' differ in case or white space only, and count as 3",
        "classes with fewer than 5 training rows: 'negative ' (3), positive (0)",
    ]


def test_names_that_would_mislead_stand_in_quotation_marks() -> None:
    names = ["", "a b", "a  b", "\t", "a, b (3)", "\u200b", "it's"]
    assert class_notes(names, rows(*[5] * 7))[0] == (
        "7 classes, with their training rows: '' (5), a b (5), 'a  b' (5), '\\t' (5), 'a, b (3)' (5), "
        "'\\u200b' (5), \"it's\" (5)"
    )


def test_many_classes_are_capped_and_counted() -> None:
    notes = class_notes([f"c{number}" for number in range(150)], rows(*[1] * 150))
    assert notes[0].endswith("c8 (1), c9 (1) and 140 more")
    assert notes[1].endswith("c9 (1) and 140 more")
    assert len(notes) == 2
