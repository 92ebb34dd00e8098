"""Pruning of single weights: a score for each, a mask from the scores, and training under it.

Notebook 16. Magnitude (Han et al. 2015), Wanda (Sun et al. 2024), n of m neighbours, gradual
schedules (Zhu & Gupta 2018), lottery tickets (Frankle & Carbin 2019). A mask is True where a weight
stays. Shapes: W (D_out, D_in).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.compression.calibration import Moments
from course_utils.compression.rtn import linear_layers

# ── scores ────────────────────────────────────────────────────────────────────────────────────────


def magnitude_scores(weight: Tensor) -> Tensor:
    """|W|.

    >>> magnitude_scores(torch.tensor([[-3.0, 1.0]])).tolist()
    [[3.0, 1.0]]
    """
    return weight.detach().abs()


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """|W|·‖x‖, with the norm of each input over the examples (D_in,). Sun et al., equation 1.

    >>> wanda_scores(torch.tensor([[-3.0, 1.0]]), norms=torch.tensor([1.0, 4.0])).tolist()
    [[3.0, 4.0]]
    """
    if tuple(norms.shape) != (weight.shape[-1],):
        raise ValueError(
            f"the weight is {tuple(weight.shape)}, the norms {tuple(norms.shape)}; give one for "
            "each input of this layer"
        )
    return weight.detach().abs() * norms.to(weight)


def linear_scores(
    model: nn.Module, moments: Mapping[str, Moments] | None = None, skip: Collection[str] = ()
) -> dict[str, Tensor]:
    """Name → scores of each linear layer: Wanda's where there are moments, else magnitudes.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> {name: tuple(scores.shape) for name, scores in linear_scores(net).items()}
    {'0': (2, 3), '2': (1, 2)}
    """
    layers = linear_layers(model, skip)
    if moments is None:
        return {name: magnitude_scores(layer.weight) for name, layer in layers.items()}
    if missing := [name for name in layers if name not in moments]:
        raise ValueError(f"there are no moments of {missing[0]}; skip it, or collect them")
    return {
        name: wanda_scores(layer.weight, moments[name].norm()) for name, layer in layers.items()
    }


# ── masks ─────────────────────────────────────────────────────────────────────────────────────────


def layer_mask(scores: Tensor, sparsity: float) -> Tensor:
    """False at the smallest scores of the whole layer: `sparsity` of them, exactly.

    Of equal scores the first go. 0 leaves all, 1 takes all.

    >>> layer_mask(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), sparsity=0.5).int().tolist()
    [[0, 0], [1, 1]]
    """
    return row_mask(scores.reshape(1, -1), sparsity).reshape(scores.shape)


def row_mask(scores: Tensor, sparsity: float) -> Tensor:
    """False at the smallest scores of each row, an output's weights: Wanda's comparison.

    >>> row_mask(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), sparsity=0.5).int().tolist()
    [[0, 1], [0, 1]]
    """
    check_sparsity(sparsity)
    check_scores(scores)
    n = round(sparsity * scores.shape[-1])
    if n == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(n, dim=-1, keepdim=True).values  # faster than to sort: no order needed
    goes, equal = scores < limit, scores == limit
    left = n - goes.sum(dim=-1, keepdim=True)
    if (equal.sum(dim=-1, keepdim=True) > left).any():  # of equal scores the first go
        equal &= equal.cumsum(dim=-1) <= left
    return ~(goes | equal)


def global_masks(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """False at the smallest scores of all layers together: some layers lose more than others.

    >>> scores = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[3.0, 4.0]])}
    >>> {name: mask.int().tolist() for name, mask in global_masks(scores, 0.5).items()}
    {'a': [[0, 0]], 'b': [[1, 1]]}
    """
    if not scores:
        raise ValueError("there are no scores; a mask needs at least one layer's")
    mask = layer_mask(torch.cat([each.flatten() for each in scores.values()]), sparsity)
    pieces = mask.split([each.numel() for each in scores.values()])
    return {n: m.view_as(scores[n]) for n, m in zip(scores, pieces, strict=True)}


def n_of_m_mask(scores: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """True at the n largest scores of each m neighbours in a row: what sparse tensor cores take.

    Mishra et al. 2021. Raises ValueError where m does not divide the row.

    >>> n_of_m_mask(torch.tensor([[1.0, 4.0, 2.0, 3.0]])).int().tolist()
    [[0, 1, 0, 1]]
    """
    check_n_of_m(n, m, scores.shape[-1])
    groups = scores.reshape(-1, m)  # (D_out · D_in / m, m)
    return row_mask(groups, (m - n) / m).reshape(scores.shape)


def check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is {sparsity}; it is the share that goes, between 0 and 1")


def check_scores(scores: Tensor) -> None:
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().sum())} of {scores.numel()} scores are NaN")


def check_n_of_m(n: int, m: int, d_in: int) -> None:
    if not 1 <= n <= m:
        raise ValueError(f"n is {n} of m = {m}; give 1 to m")
    if d_in % m:
        raise ValueError(f"m is {m}, which does not divide rows of {d_in}; leave such layers out")


# ── models ────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights at False to 0, layer by layer.

    >>> net = nn.Sequential(nn.Linear(2, 1))
    >>> apply_masks(net, {"0": torch.tensor([[True, False]])})
    >>> net[0].weight[0, 1].item()
    0.0
    """
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        if mask.shape != weight.shape:
            raise ValueError(
                f"the mask of {name} is {tuple(mask.shape)}, its weight {tuple(weight.shape)}"
            )
        weight.masked_fill_(~mask, 0)


def zeros_of(model: nn.Module) -> int:
    """How many weights of all linear layers are exactly 0.

    >>> net = nn.Sequential(nn.Linear(4, 1))
    >>> apply_masks(net, {"0": torch.tensor([[True, True, False, True]])})
    >>> zeros_of(net)
    1
    """
    return sum(int((layer.weight == 0).sum()) for layer in linear_layers(model).values())


def sparsity_of(model: nn.Module) -> float:
    """The share of zeros among the weights of all linear layers.

    >>> net = nn.Sequential(nn.Linear(4, 1))
    >>> apply_masks(net, {"0": torch.tensor([[True, True, False, True]])})
    >>> sparsity_of(net)
    0.25
    """
    sizes = [layer.weight.numel() for layer in linear_layers(model).values()]
    if not sizes:
        raise ValueError(f"this {type(model).__name__} has no linear layer of its own")
    return zeros_of(model) / sum(sizes)


# ── training under a mask ─────────────────────────────────────────────────────────────────────────


class MaskKeeper:
    """Keeps pruned weights at exactly 0 while an optimizer trains the rest.

    Their gradients are 0 (so that clipping does not count them), and after each step they are set
    to 0 again: momentum from before the pruning, or weight decay, would move them. Use it in a
    `with` block, or call `release`.

    >>> net, x = nn.Sequential(nn.Linear(4, 1)), torch.ones(1, 4)
    >>> optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    >>> with MaskKeeper(net, optimizer) as keeper:
    ...     keeper.keep({"0": torch.tensor([[True, False, True, False]])})
    ...     net(x).sum().backward()
    ...     optimizer.step()
    >>> net[0].weight[0].ne(0).tolist()
    [True, False, True, False]
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.masks = model, {}
        self._after_step = optimizer.register_step_post_hook(lambda *_: self._set_to_zero())
        self._gradients: list[Any] = []

    def keep(self, masks: Mapping[str, Tensor]) -> None:
        """Put these masks in place of those before, at once."""
        apply_masks(self.model, masks)
        self.masks = dict(masks)
        self._forget_gradients()
        for name, mask in self.masks.items():
            weight = self.model.get_submodule(name).weight
            hook = lambda gradient, mask=mask: gradient.masked_fill(~mask, 0)  # noqa: E731
            self._gradients.append(weight.register_hook(hook))

    def release(self) -> None:
        """Let all weights learn again."""
        self._after_step.remove()
        self._forget_gradients()

    def _set_to_zero(self) -> None:
        apply_masks(self.model, self.masks)

    def _forget_gradients(self) -> None:
        for hook in self._gradients:
            hook.remove()
        self._gradients = []

    def __enter__(self) -> MaskKeeper:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def gradual_sparsity(step: int, final: float, start: int, end: int, initial: float = 0.0) -> float:
    """From `initial` at step `start` to `final` at `end`, fast at first, and constant outside.

    final + (initial − final)·(1 − t)³, with t from 0 to 1. Zhu & Gupta 2018, equation 1.

    >>> steps = (0, 50, 100, 200)
    >>> [round(gradual_sparsity(i, final=0.8, start=0, end=100), 4) for i in steps]
    [0.0, 0.7, 0.8, 0.8]
    """
    check_sparsity(final)
    check_sparsity(initial)
    if not 0 <= start < end:
        raise ValueError(f"start is {start}, end {end}; pruning ends after it starts")
    t = min(max((step - start) / (end - start), 0), 1)
    return final + (initial - final) * (1 - t) ** 3


def iterative_sparsities(final: float, rounds: int) -> list[float]:
    """The sparsity after each round, if every round takes the same share of what is left.

    Frankle & Carbin 2019, section 1.

    >>> [round(s, 3) for s in iterative_sparsities(final=0.784, rounds=3)]  # 40 % each time
    [0.4, 0.64, 0.784]
    """
    if not 0 <= final < 1 or rounds < 1:
        raise ValueError(f"final is {final} in {rounds} rounds; give 0 to below 1, in at least one")
    return [1 - (1 - final) ** (i / rounds) for i in range(1, rounds + 1)]


# ── lottery tickets ───────────────────────────────────────────────────────────────────────────────


def rewind(model: nn.Module, initial: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Give all weights their first values (a copied state dict), and prune those: a ticket.

    >>> net = nn.Sequential(nn.Linear(2, 1))
    >>> first = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    >>> _ = net[0].weight.data.add_(1)
    >>> rewind(net, first, {"0": torch.tensor([[True, False]])})
    >>> bool(net[0].weight[0, 0] == first["0.weight"][0, 0]), net[0].weight[0, 1].item()
    (True, 0.0)
    """
    model.load_state_dict(initial)
    apply_masks(model, masks)


def shuffled_masks(
    masks: Mapping[str, Tensor], seed: int = 0, within: str = "layer"
) -> dict[str, Tensor]:
    """Masks that keep as many weights of each layer, at random: the control of a ticket.

    `within` says what keeps its number: "layer", each of the "inputs" (a column of the weight), or
    each of the "outputs" (a row).

    >>> shuffled_masks({"0": torch.tensor([[True, False, False]])})["0"].sum().item()
    1
    >>> mask = torch.tensor([[True, False, False], [True, False, True]])
    >>> shuffled_masks({"0": mask}, within="inputs")["0"].sum(dim=0).tolist()
    [2, 0, 1]
    """
    if within not in ("layer", "inputs", "outputs"):
        raise ValueError(f"within is {within!r}; it must be layer, inputs or outputs")
    generator = torch.Generator().manual_seed(seed)
    shuffled = {}
    for name, mask in masks.items():
        if within == "layer":
            order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
            shuffled[name] = mask.flatten()[order].view_as(mask)
        else:
            dim = 0 if within == "inputs" else 1
            order = torch.rand(mask.shape, generator=generator).argsort(dim).to(mask.device)
            shuffled[name] = mask.gather(dim, order)
    return shuffled
