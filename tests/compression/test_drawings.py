"""Figures of compression come out as one picture each, and say in words what they show."""

from __future__ import annotations

import torch
from pictures import alt_text_of, is_picture

from course_utils.compression import drawings, number_formats


def test_bit_fields_are_one_picture(shown):
    numbers = {n: number_formats.bit_fields(0.1, n) for n in number_formats.FORMATS}
    drawings.bit_fields(numbers, title="Bits")
    (picture,) = shown
    assert is_picture(picture)
    assert "sign; exponent; fraction" in alt_text_of(picture)


def test_shares_and_columns_are_one_picture_each(shown):
    drawings.shares_by_grain(
        {"a row": [1.0, 0.2], "a group": [1.0, 0.7]}, ["8", "2"], title="t", x="bits"
    )
    drawings.sorted_columns({"calm": torch.tensor([1.0, 2.0, 3.0])}, title="t", y="times")
    assert len(shown) == 2
    assert all(map(is_picture, shown))
    assert "calm" in alt_text_of(shown[1])


def test_levels_and_formats_are_one_picture_each(shown):
    drawings.level_use({"any": [0.2, 0.5, 0.3]}, [-1.0, 0.0, 1.0], title="Not equal")
    drawings.bits_and_quality({"Q4_0": (4.5, 0.9)}, title="t", y="cosine", apart=["Q4_0"])
    assert len(shown) == 2
    assert all(map(is_picture, shown))
    assert "Not equal" in alt_text_of(shown[0])


def test_masks_are_one_picture(shown):
    mask = torch.tensor([[True, False, True, False], [False, True, False, True]])
    drawings.masks({"any": mask, "2:4": ~mask}, title="Half of them go", group=4)
    assert len(shown) == 1
    assert is_picture(shown[0])
    assert "Half of them go" in alt_text_of(shown[0])


def test_grids_are_one_picture(shown):
    drawings.grids([0.1, -0.2, 0.3], {"3 bits": [-0.3, 0.0, 0.3]}, title="Few levels", x="weight")
    assert len(shown) == 1
    assert is_picture(shown[0])
    assert "Few levels" in alt_text_of(shown[0])


def test_a_lesson_is_one_picture_in_words(shown):
    drawings.lesson(title="Only the student moves")
    (picture,) = shown
    assert is_picture(picture)
    assert "Only the student moves" in alt_text_of(picture)
    assert "student" in alt_text_of(picture)
