"""What the tests of retrieval share."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

prop = settings(max_examples=60, deadline=None, derandomize=True, database=None)


texts = st.text(alphabet="ab é’-.\n\t ", max_size=120)


def words(text: str) -> int:
    return len(text.split())
