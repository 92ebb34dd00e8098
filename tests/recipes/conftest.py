"""What the recipes' tests share: a dictionary small enough to train on in a second."""

from __future__ import annotations

from functools import partial

import pytest

from course_utils.tasks import pronunciation

WORDS = {"cat": [["K", "AE1", "T"]], "cats": [["K", "AE1", "T", "S"]], "tack": [["T", "AE1", "K"]]}


@pytest.fixture
def small_dictionary(monkeypatch) -> None:
    """CMUdict has six words: two to train on, two to watch, two to test."""
    words = WORDS | {f"{word}'s": sounds for word, sounds in WORDS.items()}
    monkeypatch.setattr(pronunciation, "load_cmudict", lambda: words)
    monkeypatch.setattr(
        pronunciation, "split", partial(pronunciation.split, n_test=2, n_dev=2), raising=True
    )
