"""What comes into each linear layer while a model reads examples. Notebooks 13 and 16.

GPTQ and SparseGPT need its second moments, AWQ its sizes, Wanda its norms. Shapes: x the inputs of
a layer (…, D_in), flattened to (N, D_in) with one row a token; H (D_in, D_in).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.compression.rtn import linear_layers

# ── watching ──────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def watching(layers: Mapping[str, nn.Linear], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block, `see(name, x)` is called with what each layer gets, before it acts."""

    def hook(name: str) -> Callable[[nn.Module, tuple], None]:
        return lambda layer, arguments: see(name, arguments[0].detach())

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def real_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (…, D) -> rows (N, D), one for each token that the mask (…) says is real; None: all.

    >>> real_tokens(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[1, 1, 0]])).tolist()
    [[1.0], [2.0]]
    """
    if mask is None:
        return x.reshape(-1, x.shape[-1])
    if x.shape[:-1] != mask.shape:
        raise ValueError(
            f"a layer's inputs are {tuple(x.shape)}, the mask {tuple(mask.shape)}; give the mask "
            "of the tokens, and skip layers that see none"
        )
    return x[mask.bool()]


def _read(model: nn.Module, batch: Any) -> object:
    return model(batch)


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    see: Callable[[str, Tensor], None],
    *,
    mask_of: Callable[[Any], Tensor] | None = None,
    call: Callable[[nn.Module, Any], object] = _read,
    skip: Collection[str] = (),
    within: str = "",
) -> list[str]:
    """Let the model read, and `see(name, rows)` all that its linear layers get; return the names.

    `call(model, batch)` runs it, by default `model(batch)`; `mask_of(batch)` (B, T) leaves padding
    out, which would count as data. Layers whose names end in one of `skip` are left out, and so are
    those whose names do not start with `within`, such as those of other blocks. A layer that was
    never reached, or got inf or NaN, is an error, and so are no batches at all.
    """
    layers, reached, mask = _chosen(model, skip, within), set(), None

    def checked(name: str, x: Tensor) -> None:
        rows = real_tokens(x, mask)
        if not rows.isfinite().all():
            raise ValueError(f"{name} gets inf or NaN; look at the examples and at layers before")
        if len(rows):
            reached.add(name)
            see(name, rows)

    with watching(layers, checked):
        for batch in batches:
            mask = None if mask_of is None else mask_of(batch)
            call(model, batch)
    if missing := [name for name in layers if name not in reached]:
        raise ValueError(
            f"the examples reached {len(reached)} of {len(layers)} layers, and not {missing[0]}; "
            "give examples, or skip such layers"
        )
    return list(layers)


def _chosen(model: nn.Module, skip: Collection[str], within: str) -> dict[str, nn.Linear]:
    layers = linear_layers(model, skip)
    chosen = {name: layer for name, layer in layers.items() if name.startswith(within)}
    if not chosen:
        some = ", ".join(list(layers)[:3]) or "none"
        raise ValueError(f"no linear layer is within {within!r}; there are: {some} …")
    return chosen


# ── what is kept of it ────────────────────────────────────────────────────────────────────────────


class Moments:
    """Running sums over the tokens of one layer: H = 2/N·Σ x xᵀ, mean |x|, and ‖x‖ a column.

    H is the Hessian of the layer's squared error ‖W x − Ŵ x‖², the same for each row of W.

    >>> moments = Moments(2)
    >>> moments.add(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    >>> moments.hessian()
    tensor([[2., 2.],
            [2., 4.]])
    >>> moments.mean_size(), moments.norm()  # (1 + 1)/2 and (0 + 2)/2; √(1 + 1) and √(0 + 4)
    (tensor([1., 1.]), tensor([1.4142, 2.0000]))
    """

    def __init__(self, d_in: int) -> None:
        self.n = 0
        self.products, self.sizes = torch.zeros(d_in, d_in), torch.zeros(d_in)

    def add(self, x: Tensor) -> None:
        """Rows x (N, D_in) more."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        self.n += len(x)
        self.products = self.products.to(x) + x.T @ x
        self.sizes = self.sizes.to(x) + x.abs().sum(dim=0)

    def hessian(self) -> Tensor:
        """2/N·Σ x xᵀ (D_in, D_in). Frantar et al. 2023 (GPTQ), section 3.1."""
        return self.products * (2 / self._counted())

    def mean_size(self) -> Tensor:
        """Mean |x| of each column (D_in,): AWQ's measure of salience."""
        return self.sizes / self._counted()

    def norm(self) -> Tensor:
        """√Σx² of each column over all tokens (D_in,): Wanda's."""
        self._counted()
        return self.products.diagonal().clamp(min=0).sqrt()

    def _counted(self) -> int:
        if not self.n:
            raise ValueError("no example was seen: n is 0; let the model read some first")
        return self.n


def collect_moments(model: nn.Module, batches: Iterable[Any], **options: Any) -> dict[str, Moments]:
    """Name → `Moments` of each linear layer's inputs; `options` are those of `calibrate`.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> moments = collect_moments(net, [torch.randn(4, 3), torch.randn(1, 3)])
    >>> {name: (each.n, tuple(each.hessian().shape)) for name, each in moments.items()}
    {'0': (5, (3, 3)), '2': (5, (2, 2))}
    """
    found: dict[str, Moments] = {}

    def see(name: str, x: Tensor) -> None:
        found.setdefault(name, Moments(x.shape[1])).add(x)

    names = calibrate(model, batches, see, **options)
    return {name: found[name] for name in names}


def layers_of(model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, nn.Linear]:
    """The model's linear layers that `moments` names; ValueError where they are another model's."""
    layers = linear_layers(model)
    if unknown := [name for name in moments if name not in layers]:
        raise ValueError(f"the model has no linear layer {unknown[0]}; collect its own moments")
    return {name: layers[name] for name in moments}


def output_error(weight: Tensor, changed: Tensor, hessian: Tensor) -> float:
    """‖W x − Ŵ x‖² over the examples, as a share of ‖W x‖²; nan where W x is 0 everywhere.

    tr(Δ H Δᵀ) / tr(W H Wᵀ), so that no example need be kept.

    >>> W = torch.tensor([[1.0, 1.0]])
    >>> output_error(W, torch.tensor([[1.0, 0.0]]), torch.diag(torch.tensor([3.0, 1.0])))
    0.25
    """
    check_hessian(weight, hessian)
    delta = (weight - changed).to(hessian)
    whole = ((weight.to(hessian) @ hessian) * weight.to(hessian)).sum()
    return (((delta @ hessian) * delta).sum() / whole).item()


def check_hessian(weight: Tensor, hessian: Tensor) -> None:
    """Raise ValueError for a Hessian that is not this weight's, is not finite, or is all 0."""
    if weight.ndim != 2 or tuple(hessian.shape) != (weight.shape[1], weight.shape[1]):
        raise ValueError(
            f"the weight is {tuple(weight.shape)}, the Hessian {tuple(hessian.shape)}; a weight is "
            "(D_out, D_in) with a Hessian (D_in, D_in): GPT-2's Conv1D keeps its transpose"
        )
    if not hessian.isfinite().all():
        raise ValueError("the Hessian holds inf or NaN; look at the examples")
    if not (hessian.diagonal() > 0).any():
        raise ValueError("the Hessian's diagonal is 0: all inputs were 0; give other examples")
