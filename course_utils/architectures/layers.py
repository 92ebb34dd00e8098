"""What every network here stands on: checks of ids and weights. Notebooks 01, 02 and 03."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# ── checks ────────────────────────────────────────────────────────────────────────────────────────


def check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")


def check_ids(ids: Tensor, n_symbols: int, name: str = "ids") -> None:
    """Raise one clear error for ids that are no (B, T) integers below `n_symbols`."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} are {ids.dtype}; token ids are integers (use .long())")
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(
            f"{name} have shape {tuple(ids.shape)}; give (batch, steps) with at least one step"
        )
    if ids.device.type == "cpu" and ids.numel():  # elsewhere looking would stall the device
        low, high = (end.item() for end in ids.aminmax())
        if low < 0 or high >= n_symbols:
            raise ValueError(
                f"{name} go from {low} to {high}; the vocabulary is 0 … {n_symbols - 1}"
            )


def one_each(tensor: Tensor, n_rows: int, name: str) -> Tensor:
    """A row for each of `n_rows` texts: one row serves all of them."""
    if len(tensor) not in (1, n_rows):
        raise ValueError(f"{n_rows} rows of ids, {len(tensor)} {name}; give one, or one for each")
    return tensor.expand(n_rows, *tensor.shape[1:])


def check_one_prompt(prompts: Tensor) -> None:
    """Raise ValueError where equal ids could belong to either of two prompts."""
    if len(prompts) > 1:
        raise ValueError(
            f"the rows of {len(prompts)} prompts cannot change places, since ids do not tell which "
            "prompt they follow; search for one prompt at a time"
        )


def copy_weights(
    model: nn.Module, source: Mapping[str, Tensor], names: Mapping[str, str], origin: str
) -> None:
    """Copy `source[names[p]]` into each parameter p of the model, every one of both exactly once.

    Raises ValueError that lists what is missing, left over or of another shape.
    """
    wanted = dict(model.named_parameters())
    problems = [f"no {names[p]} for {p}" for p in names if names[p] not in source]
    problems += [f"no place for {name}" for name in source if name not in names.values()]
    problems += [f"{origin} has nothing for our {p}" for p in wanted if p not in names]
    problems += [f"our model has no {p} for {names[p]}" for p in names if p not in wanted]
    for p in wanted.keys() & names.keys():
        if names[p] in source and tuple(source[names[p]].shape) != tuple(wanted[p].shape):
            got, want = tuple(source[names[p]].shape), tuple(wanted[p].shape)
            problems.append(f"{names[p]} is {got}, our {p} is {want}")
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"weights of {origin} do not fit: {'; '.join(problems[:4])}{more}")
    with torch.no_grad():
        for p, name in names.items():
            wanted[p].copy_(torch.as_tensor(source[name]))
