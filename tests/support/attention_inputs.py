"""What the tests of attention share."""

from __future__ import annotations

# Double precision: what is left is rounding alone, so that a wrong formula cannot hide in it.
EXACT = {"atol": 1e-12, "rtol": 1e-12}


# fp32 with sums in another order, values near 1.
TOLERANCE = {"atol": 2e-6, "rtol": 1e-5}
