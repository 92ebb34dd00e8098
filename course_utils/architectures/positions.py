"""Where a token stands: sinusoids, rotary angles and their scalings, relative buckets. Notebook 02.

Shapes: B sequences, H heads, T positions, D numbers per head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# ── positions ─────────────────────────────────────────────────────────────────────────────────────


def sinusoidal_positions(n_positions: int, d_model: int) -> Tensor:
    """sin and cos of pos/10000^(2i/d) in turns -> (T, d_model). Vaswani et al. 2017, §3.5.

    >>> sinusoidal_positions(2, 4)  # sin and cos of 1 and of 1/100
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}; sines and cosines come in pairs, so make it even")
    angles = torch.arange(n_positions).unsqueeze(1) * rotary_frequencies(d_model)  # (T, d/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def rotary_frequencies(d_head: int, theta: float = 10_000.0) -> Tensor:
    """θ^(−2i/D), i = 0 … D/2 − 1: how far pair i turns from a position to the next, in radians.

    Su et al. 2021 (RoFormer), equation 15.

    >>> rotary_frequencies(4)  # a turn in 6.3 steps, and in 628
    tensor([1.0000, 0.0100])
    """
    if d_head % 2:
        raise ValueError(f"d_head is {d_head}; rotary positions turn pairs, so make it even")
    return 1 / theta ** (torch.arange(0, d_head, 2).float() / d_head)  # as transformers rounds it


def rotate_plain(x: Tensor, position: int, theta: float = 10_000.0) -> Tensor:
    """One vector (D,), turned pair by pair as in the paper: neighbours 2i and 2i + 1 are a pair.

    Su et al. 2021, equation 15.

    >>> rotate_plain(torch.tensor([1.0, 0.0]), position=1)  # cos 1, sin 1
    tensor([0.5403, 0.8415])
    """
    turned = torch.empty_like(x)
    for i, frequency in enumerate(rotary_frequencies(len(x), theta).tolist()):
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        turned[2 * i] = x[2 * i] * cos - x[2 * i + 1] * sin
        turned[2 * i + 1] = x[2 * i] * sin + x[2 * i + 1] * cos
    return turned


def rotary_angles(
    positions: Tensor, frequencies: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """What `rotate` needs at positions (B or 1, T): cosines and signed sines, (B or 1, 1, T, D).

    Numbers i and i + D/2 of a head are a pair with one angle; the sine of the first has a minus.
    `scale` multiplies both.
    """
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, T, 1) (D/2,)
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, H, T, D) by its positions: x_i cos − x_{i+D/2} sin and x_{i+D/2} cos + x_i sin.

    The layout of Llama's weights in transformers; `pair_halves` makes it of the paper's.

    >>> cos, sin = rotary_angles(torch.tensor([[1]]), rotary_frequencies(2))
    >>> rotate(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), cos, sin).flatten()
    tensor([0.5403, 0.8415])
    """
    partner = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, partner, sin)


def pair_halves(weight: Tensor, n_heads: int) -> Tensor:
    """Reorder a query or key weight (H·D, …) from neighbouring pairs to pairs half a head apart.

    Scores do not change when both are reordered; GGUF files and Meta's Llama weights hold the
    former, transformers the latter.

    >>> pair_halves(torch.arange(4).view(4, 1), n_heads=1).flatten()
    tensor([0, 2, 1, 3])
    """
    heads = weight.unflatten(0, (n_heads, -1, 2))  # (H, D/2, 2, …)
    return heads.transpose(1, 2).flatten(0, 2)


# ── longer contexts: other frequencies for the same weights ───────────────────────────────────────


def linear_scaling(frequencies: Tensor, factor: float) -> Tensor:
    """Position interpolation: step `factor` times as slowly everywhere. Chen et al. 2023.

    >>> linear_scaling(rotary_frequencies(4), factor=2.0)
    tensor([0.5000, 0.0050])
    """
    return frequencies / factor


def dynamic_scaling(
    d_head: int, theta: float, factor: float, length: int, original_length: int
) -> Tensor:
    """Raise the base as the text outgrows what was trained: slow pairs stretch, fast ones do not.

    Dynamic NTK-aware scaling (bloc97 and emozilla 2023, in Peng et al. 2023, §3.3).
    """
    stretch = factor * max(length, original_length) / original_length - (factor - 1)
    return rotary_frequencies(d_head, theta * stretch ** (d_head / (d_head - 2)))


def yarn_scaling(
    frequencies: Tensor,
    theta: float,
    factor: float,
    original_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> tuple[Tensor, float]:
    """Pairs that turn often keep their frequency, those that turn less than once are stretched.

    Between `beta_fast` and `beta_slow` turns over the original length a ramp mixes the two. Also
    returns the factor 0.1·ln(factor) + 1 on cosines and sines. Peng et al. 2023 (YaRN), §3.2–3.4,
    with the ends of the ramp rounded to whole pairs as in the authors' code.
    """
    half = len(frequencies)

    def pair_that_turns(times: float) -> float:  # solve original_length·θ^(−i/half) = 2π·times
        return half * math.log(original_length / (times * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(pair_that_turns(beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(beta_slow)), 2 * half - 1)
    ramp = (torch.arange(half) - low) / max(high - low, 1e-3)
    stretched = ramp.clamp(0, 1)  # 0 keeps, 1 stretches
    mixed = frequencies / factor * stretched + frequencies * (1 - stretched)
    return mixed, 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def llama3_scaling(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_length: int,
) -> Tensor:
    """Stretch wavelengths above original/low, keep those below original/high, blend in between.

    Llama 3.1's rule (Meta's reference code, 2024).
    """
    turns = original_length * frequencies / (2 * math.pi)  # over the original length
    keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    keep = keep.clamp(0, 1)
    return frequencies / factor * (1 - keep) + frequencies * keep


_SCALING_NAMES = {
    *("rope_type", "rope_theta", "factor", "original_max_position_embeddings"),
    *("beta_fast", "beta_slow", "attention_factor", "low_freq_factor", "high_freq_factor"),
}


def scaled_frequencies(
    d_head: int,
    theta: float = 10_000.0,
    scaling: Mapping[str, Any] | None = None,
    *,
    length: int = 0,
    max_positions: int = 0,
) -> tuple[Tensor, float]:
    """Frequencies (D/2,) and the factor on cosines and sines under a model's scaling rule.

    `scaling` has the names of a transformers configuration: "rope_type" (default, linear, dynamic,
    yarn, llama3), "factor", "original_max_position_embeddings" and the rule's own. `length` is how
    far the text goes, used by "dynamic". ValueError for a rule that is not here.
    """
    scaling = dict(scaling or {})
    if unknown := scaling.keys() - _SCALING_NAMES:
        raise ValueError(f"scaling has {', '.join(sorted(unknown))}, which no rule here uses")
    kind, factor = scaling.get("rope_type", "default"), scaling.get("factor", 1.0)
    original = scaling.get("original_max_position_embeddings") or max_positions
    frequencies = rotary_frequencies(d_head, theta)
    if kind == "default":
        return frequencies, 1.0
    if kind == "linear":
        return linear_scaling(frequencies, factor), 1.0
    if kind == "dynamic":
        return dynamic_scaling(d_head, theta, factor, length, max_positions), 1.0
    if kind == "yarn":
        betas = [scaling.get("beta_fast") or 32.0, scaling.get("beta_slow") or 1.0]
        mixed, magnitude = yarn_scaling(frequencies, theta, factor, original, *betas)
        return mixed, scaling.get("attention_factor") or magnitude
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        return llama3_scaling(frequencies, factor, low, high, original), 1.0
    raise ValueError(f"rope_type is {kind!r}; known are default, linear, dynamic, yarn, llama3")


def relative_buckets(
    n_queries: int,
    n_keys: int,
    *,
    n_buckets: int = 32,
    max_distance: int = 128,
    both_ways: bool = True,
) -> Tensor:
    """Which learned bias each pair of positions uses -> (T_q, T_k), queries at the right end.

    Near distances have a bucket each, farther ones share buckets that widen logarithmically up to
    `max_distance`; `both_ways` gives the keys after a query the upper half. Raffel et al. 2020
    (T5), §2.1, with the rounding of the published models.

    >>> relative_buckets(1, 4, n_buckets=8, both_ways=False)  # three steps back, two, one, none
    tensor([[3, 2, 1, 0]])
    """
    positions = torch.arange(n_keys)
    distance = positions - positions[n_keys - n_queries :].unsqueeze(1)  # key − query
    if both_ways:
        n_buckets //= 2
        upper, distance = (distance > 0) * n_buckets, distance.abs()
    else:
        upper, distance = 0, (-distance).clamp(min=0)
    exact = n_buckets // 2
    ratio = (distance.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (ratio * (n_buckets - exact)).long()).clamp(max=n_buckets - 1)
    return upper + torch.where(distance < exact, distance, far)
