"""What the tests of prompting share."""

from __future__ import annotations

from hypothesis import strategies as st

from course_utils.prompting.prompts import Shot

LABELS = ["positive", "negative"]


SHOTS = [Shot("lovely", "positive"), Shot("awful", "negative")]


positive = st.floats(0.01, 1)
