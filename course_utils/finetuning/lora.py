"""LoRA: a frozen weight, and beside it a product of two narrow ones that learns. Notebook 07.

Hu et al. 2021 (LoRA), section 4: W x + (α/r)·B A x with A (r, D_in) and B (D_out, r), where B
starts at 0. With it the scale α/√r of Kalajdzievski 2023 (rsLoRA) and the split into magnitude and
direction of Liu et al. 2024 (DoRA). Shapes: W (D_out, D_in), r = rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ── the change of a weight ────────────────────────────────────────────────────────────────────────


def lora_scale(rank: int, alpha: float, rank_stabilised: bool = False) -> float:
    """α/r, or α/√r: what keeps the update's size when the rank changes.

    Hu et al. 2021, section 4.1; Kalajdzievski 2023, theorem 3.2. Raises ValueError for α = 0, which
    would leave nothing to learn, and for ranks below 1.

    >>> lora_scale(16, alpha=32), lora_scale(16, alpha=32, rank_stabilised=True)
    (2.0, 8.0)
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1")
    if not alpha or not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}; the update is multiplied by it: choose rank, or twice")
    return alpha / math.sqrt(rank) if rank_stabilised else alpha / rank


def lora_delta(A: Tensor, B: Tensor, scale: float) -> Tensor:
    """ΔW = scale·B A (D_out, D_in), of rank r at most.

    >>> A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]])
    >>> lora_delta(A, B, scale=0.5)
    tensor([[1.5000, 3.0000],
            [0.0000, 0.0000]])
    """
    return scale * (B @ A)


def dora_ratio(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    """m / ‖W + ΔW‖ of each row, an output's weights: (D_out,). Liu et al. 2024, equation 5.

    The norm counts as a constant, so that no gradient flows through it (their section 4.3). A row
    of zeros has no direction and keeps the ratio 1.

    >>> dora_ratio(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]), torch.tensor([3.0]))
    tensor([0.6000])
    """
    norm = (weight + delta).detach().norm(dim=1)
    return torch.where(norm > 0, magnitude / norm.clamp(min=1e-38), torch.ones_like(norm))


def lora_parameters(d_in: int, d_out: int, rank: int) -> int:
    """r·(D_in + D_out) numbers instead of D_in·D_out.

    >>> lora_parameters(576, 576, rank=8), 576 * 576
    (9216, 331776)
    """
    return rank * (d_in + d_out)


def check_rank(rank: int, d_in: int, d_out: int) -> None:
    if rank >= min(d_in, d_out):
        raise ValueError(
            f"rank is {rank}, the weight {d_out} × {d_in}: from rank {min(d_in, d_out)} on the "
            "product can be any matrix, so give less, or train the layer itself"
        )


def check_name(name: str) -> None:
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"name is {name!r}; an adapter's is made of letters, digits and _")


# ── one adapter, and the layer that holds several ─────────────────────────────────────────────────


class Adapter(nn.Module):
    """A, B, their scale, dropout on what comes in, and with DoRA a magnitude for each output.

    A is uniform in ±1/√D_in and B is 0, as in the authors' and peft's code: at the start nothing
    changes, and B alone has a gradient.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        rank: int,
        alpha: float,
        *,
        rank_stabilised: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_rank(rank, d_in, d_out)
        self.rank, self.alpha, self.rank_stabilised = rank, alpha, rank_stabilised
        self.scale = lora_scale(rank, alpha, rank_stabilised)
        self.A = nn.Parameter(torch.empty(rank, d_in).uniform_(-1, 1) / math.sqrt(d_in))
        self.B = nn.Parameter(torch.zeros(d_out, rank))
        self.magnitude: nn.Parameter | None = None  # see `start_dora`
        self.dropout = nn.Dropout(dropout)

    def start_dora(self, weight: Tensor) -> None:
        """Split the weight: its rows' lengths become the magnitude, which learns on its own."""
        norm = (weight + self.update()).detach().norm(dim=1)
        self.magnitude = nn.Parameter(norm.to(self.A.dtype))

    def update(self) -> Tensor:
        """scale·B A (D_out, D_in), before any magnitude."""
        return lora_delta(self.A, self.B, self.scale)

    def delta(self, weight: Tensor) -> Tensor:
        """What merging adds to this weight (D_out, D_in)."""
        weight = weight.to(self.A.dtype)
        if self.magnitude is None:
            return self.update()
        ratio = dora_ratio(weight, self.update(), self.magnitude).unsqueeze(1)  # (D_out, 1)
        return ratio * (weight + self.update()) - weight

    def forward(self, x: Tensor, base: nn.Module, product: Tensor) -> Tensor:
        """What is added to the base's output: x (…, D_in), product = W x (…, D_out)."""
        x = self.dropout(x.to(self.A.dtype))
        added = F.linear(self.scale * F.linear(x, self.A), self.B)  # the scale on r numbers only
        if self.magnitude is None:
            return added
        weight = dense_weight(base).to(self.A.dtype)
        if self.training and self.dropout.p:
            product = F.linear(x, weight)  # of what dropout left, as in peft
        ratio = dora_ratio(weight, self.update(), self.magnitude)
        return (ratio - 1) * product + ratio * added


class LoRALinear(nn.Module):
    """A frozen linear layer and any number of adapters, of which the active ones are added.

    `base` is an `nn.Linear` or anything like one: `in_features`, `out_features`, a call. After
    `merge` the base does all of it alone; `unmerge` gives it back the very weights it had.

    >>> layer = LoRALinear(nn.Linear(4, 4))
    >>> layer.add("mine", rank=2, alpha=4)
    >>> x = torch.randn(3, 4)
    >>> bool((layer(x) == layer.base(x)).all())  # at the start
    True
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.adapters = nn.ModuleDict()
        self.active: list[str] = []
        self._before: dict[str, Tensor] | None = None  # the base's tensors while it is merged

    @property
    def merged(self) -> bool:
        return self._before is not None

    def add(
        self,
        name: str,
        rank: int,
        alpha: float,
        *,
        rank_stabilised: bool = False,
        dora: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """A new adapter of this name, active beside those that are."""
        self.check_new(name)
        sizes = self.in_features, self.out_features, rank, alpha
        adapter = Adapter(*sizes, rank_stabilised=rank_stabilised, dropout=dropout)
        if dora:
            adapter.start_dora(dense_weight(self.base).float().cpu())
        self.adapters[name] = adapter.to(_device_of(self.base)).train(self.training)
        self.active.append(name)

    def check_new(self, name: str) -> None:
        """Raise RuntimeError or ValueError where no adapter of this name can be added."""
        if self.merged:
            raise RuntimeError(f"adapters are merged into this layer; unmerge before adding {name}")
        if name in self.adapters:
            raise ValueError(f"there is an adapter {name} already; give another name")
        check_name(name)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, D_in) -> (…, D_out)."""
        y = self.base(x)
        if self.merged:
            return y
        product = y
        if getattr(self.base, "bias", None) is not None and self._any_dora():
            product = y - self.base.bias
        for name in self.active:
            y = y + self.adapters[name](x, self.base, product).to(y.dtype)
        return y

    def _any_dora(self) -> bool:
        return any(self.adapters[name].magnitude is not None for name in self.active)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the active adapters to the base's weight. A second call changes nothing."""
        if self.merged or not self.active:
            return
        weight = dense_weight(self.base)
        changed = weight + sum(self.adapters[name].delta(weight) for name in self.active)
        if not changed.isfinite().all():
            raise ValueError(f"the weight with {', '.join(self.active)} is not finite; not merged")
        before = {key: value.clone() for key, value in self.base.state_dict().items()}
        _write(self.base, changed)
        self._before = before

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the base its weights back, bit for bit: they were kept."""
        if self._before is not None:
            self.base.load_state_dict(self._before)
            self._before = None


def dense_weight(base: nn.Module) -> Tensor:
    """W (D_out, D_in) of a linear layer: its weight, or what it makes of the unit vectors.

    So a packed weight of any library can be read exactly: a row of the identity times Wᵀ adds
    nothing but zeros to a column of W.

    >>> dense_weight(nn.Linear(3, 2)).shape
    torch.Size([2, 3])
    """
    if hasattr(base, "dequantized"):
        return base.dequantized()
    if base.weight.is_floating_point() and base.weight.shape == (
        base.out_features,
        base.in_features,
    ):
        return base.weight.detach()
    bias, base.bias = base.bias, None  # W + bias − bias would be rounded
    try:
        with torch.no_grad():
            return base(torch.eye(base.in_features, device=base.weight.device)).T.contiguous()
    finally:
        base.bias = bias


def _write(base: nn.Module, weight: Tensor) -> None:
    """Replace the base's weight, in the form it has."""
    if hasattr(base, "requantize"):
        base.requantize(weight)
    elif base.weight.is_floating_point() and base.weight.shape == weight.shape:
        base.weight.copy_(weight)
    else:
        raise TypeError(
            f"the base is a {type(base).__name__}, whose packed weight cannot be written; merge "
            "into a copy of the layer in floats"
        )


def _device_of(module: nn.Module) -> torch.device:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device


# ── adapters in a whole model ─────────────────────────────────────────────────────────────────────


def linear_names(model: nn.Module, pattern: str = ".*") -> list[str]:
    """The names of a model's linear layers, also of those that hold adapters already.

    Those whose whole name matches the regular expression.

    >>> linear_names(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    ['0', '2']
    """
    held = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    return [
        name
        for name, module in model.named_modules()
        if name and hasattr(module, "in_features") and hasattr(module, "out_features")
        if re.fullmatch(pattern, name)
        if not any(name.startswith(f"{outer}.") for outer in held)
    ]


def inject_lora(
    model: nn.Module,
    pattern: str,
    rank: int,
    alpha: float,
    *,
    rank_stabilised: bool = False,
    dora: bool = False,
    dropout: float = 0.0,
    name: str = "default",
) -> list[str]:
    """Put an adapter beside every linear layer whose whole name matches the regular expression.

    Everything else is frozen, and of all adapters this one alone is active. Returns the names of
    the layers. ValueError where nothing matches, and then nothing is changed.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> inject_lora(net, "0|2", rank=2, alpha=4)
    ['0', '2']
    >>> sum(p.numel() for p in net.parameters() if p.requires_grad)  # 2·(4 + 8) each
    48
    """
    chosen = linear_names(model, pattern)
    if not chosen:
        some = ", ".join(linear_names(model)[:4]) or "none"
        raise ValueError(f"no linear layer's whole name matches {pattern!r}; there are: {some} …")
    options = {"rank_stabilised": rank_stabilised, "dora": dora, "dropout": dropout}
    check_name(name)  # all checks first: a refusal leaves the model as it was
    lora_scale(rank, alpha, rank_stabilised)
    for layer in chosen:
        module = model.get_submodule(layer)
        check_rank(rank, module.in_features, module.out_features)
        if isinstance(module, LoRALinear):
            module.check_new(name)
    new = {layer: _held(model.get_submodule(layer)) for layer in chosen}
    for module in new.values():
        module.add(name, rank, alpha, **options)
    model.requires_grad_(False)
    for layer, module in new.items():
        model.set_submodule(layer, module)
    use_adapters(model, [name])
    return chosen


def _held(module: nn.Module) -> LoRALinear:
    return module if isinstance(module, LoRALinear) else LoRALinear(module).train(module.training)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Name → layer; ValueError if the model has no adapters."""
    found = {n: module for n, module in model.named_modules() if isinstance(module, LoRALinear)}
    if not found:
        raise ValueError(f"this {type(model).__name__} has no adapters; call inject_lora first")
    return found


def use_adapters(model: nn.Module, names: Sequence[str]) -> None:
    """Let these adapters act, and learn, and no others; with [] the model is what it was.

    >>> net = nn.Sequential(nn.Linear(4, 4))
    >>> _ = inject_lora(net, "0", rank=1, alpha=1, name="a")
    >>> _ = inject_lora(net, "0", rank=1, alpha=1, name="b")
    >>> use_adapters(net, ["a", "b"])  # their updates add up
    >>> lora_layers(net)["0"].active
    ['a', 'b']
    """
    layers = lora_layers(model)
    known = sorted({name for layer in layers.values() for name in layer.adapters})
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no adapter {', '.join(unknown)}; there are {', '.join(known)}")
    if any(layer.merged for layer in layers.values()):
        raise RuntimeError("adapters are merged; unmerge before others are chosen")
    for layer in layers.values():
        layer.active = [name for name in names if name in layer.adapters]
        for name, adapter in layer.adapters.items():
            adapter.requires_grad_(name in names)


def remove_adapter(model: nn.Module, name: str) -> None:
    """Forget one adapter in every layer; the layers stay."""
    layers = lora_layers(model).values()
    if not any(name in layer.adapters for layer in layers):
        raise ValueError(f"there is no adapter {name}")
    if any(layer.merged for layer in layers):
        raise RuntimeError(f"adapters are merged; unmerge before {name} is removed")
    for layer in layers:
        if name in layer.adapters:
            del layer.adapters[name]
            layer.active = [other for other in layer.active if other != name]


# ── merging ───────────────────────────────────────────────────────────────────────────────────────


def merge_lora(model: nn.Module) -> None:
    """Add the active adapters to the weights: no cost at inference. Twice is as once.

    RuntimeError where a weight is another module's too (a head tied to the embedding): both would
    change.
    """
    layers = lora_layers(model)
    for name, layer in layers.items():
        weight = getattr(layer.base, "weight", None)
        if layer.active and weight is not None and (other := _shared(model, weight, name)):
            raise RuntimeError(f"{name} shares its weight with {other}, which would change too")
    for layer in layers.values():
        layer.merge()


def _shared(model: nn.Module, weight: Tensor, name: str) -> str:
    """The first other module that holds this very parameter, or ""."""
    for parameter_name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter is weight and parameter_name != f"{name}.base.weight":
            return parameter_name.rpartition(".")[0]
    return ""


def unmerge_lora(model: nn.Module) -> None:
    """Take the merged adapters out again, bit for bit."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def fold_lora(model: nn.Module) -> None:
    """Merge for good: each layer becomes its base again, and no adapter is left."""
    merge_lora(model)
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.base)
