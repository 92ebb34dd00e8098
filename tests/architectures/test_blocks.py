"""Norms and checks that the families share, against torch's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from course_utils.architectures.blocks import rms_norm


def test_rms_norm_by_hand():
    """√((9 + 16)/2) = 3.5355: 3 and 4 become 0.8485 and 1.1314, times the weight."""
    got = rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(got, torch.tensor([3 / math.sqrt(12.5), 8 / math.sqrt(12.5)]))
    inside = rms_norm(torch.zeros(2), torch.ones(2), 1e-6)  # eps under the root
    assert inside.isfinite().all()


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm_is_torchs(eps):
    x, weight = torch.randn(3, 8), torch.randn(8)
    torch.testing.assert_close(rms_norm(x, weight, eps), F.rms_norm(x, (8,), weight, eps))


def test_rms_norm_of_half_precision_is_computed_wide():
    x = torch.full((4,), 300.0, dtype=torch.float16)  # 300² overflows 16 bits
    got = rms_norm(x, torch.ones(4, dtype=torch.float16), 1e-6)
    torch.testing.assert_close(got, torch.ones(4, dtype=torch.float16))
