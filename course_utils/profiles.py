"""Budgets, devices and seeds: what changes between a laptop and a GPU runner, and nothing else."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROFILES = ("cpu", "gpu")


class DeviceError(RuntimeError):
    """The wanted device is missing or computes wrong numbers."""


def for_profile(profile: str, **budgets: dict) -> SimpleNamespace:
    """Return the budget of one profile as an object with attributes.

    `for_profile(PROFILE, cpu=dict(steps=300), gpu=dict(steps=20_000)).steps`.
    Raises ValueError for an unknown profile, or when the profiles name different settings.
    """
    if profile not in PROFILES:
        raise ValueError(f"PROFILE is {profile!r}; it must be one of {', '.join(PROFILES)}")
    if missing := [name for name in PROFILES if name not in budgets]:
        raise ValueError(f"no budget for profile {', '.join(missing)}; give {missing[0]}=dict(…)")
    names = {key: set(budget) for key, budget in budgets.items()}
    if odd := set().union(*names.values()) - set.intersection(*names.values()):
        raise ValueError(f"these settings are not in every profile: {', '.join(sorted(odd))}")
    return SimpleNamespace(**budgets[profile])


def device_for(profile: str) -> torch.device:
    """Return the device of a profile, after a check that it computes what the CPU computes.

    Raises DeviceError when the profile is gpu and there is none, or its numbers are wrong.
    """
    import torch

    if profile == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            "PROFILE is 'gpu' but torch sees no CUDA device; use PROFILE='cpu', or install a CUDA "
            f"build of torch (this is {torch.__version__})"
        )
    device = torch.device("cuda")
    verify_device(device)
    return device


def _small_training(device: torch.device) -> torch.Tensor:
    """Five steps of gradient descent on a fixed small problem: the weights it ends with."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x, y, w = (torch.randn(*shape, generator=generator) for shape in ((32, 16), (32, 4), (16, 4)))
    x, y, w = x.to(device), y.to(device), w.to(device).requires_grad_()
    for _ in range(5):
        loss = ((torch.tanh(x) @ w).log_softmax(-1) * y).mean()
        (gradient,) = torch.autograd.grad(loss, w)
        w = (w - 0.5 * gradient).detach().requires_grad_()
    return w.detach().cpu()


def verify_device(device: torch.device | str) -> float:
    """Compare a small training run on `device` with the same on the CPU; return the difference.

    Some back ends train to silently wrong numbers; nothing measured there would mean anything.
    Raises DeviceError when the largest difference exceeds 1e-3.
    """
    import torch

    expected = _small_training(torch.device("cpu"))
    got = _small_training(torch.device(device))
    difference = (expected - got).abs().max().item()
    if not difference <= 1e-3:  # fp32 with TF32 matrix products stays below; NaN fails too
        raise DeviceError(
            f"device {device} disagrees with the CPU by {difference:.3g} after five steps of a "
            "small training run; update its driver and torch, or use PROFILE='cpu'"
        )
    return difference


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, numpy and torch, and return a seeded generator for explicit sampling."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  libraries that use the global state are seeded too
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def threads() -> int:
    """Number of CPU threads to compute with: OMP_NUM_THREADS if set, else the cores allowed.

    Of a list such as "4,2" (threads within threads) the first number counts, as in OpenMP.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
