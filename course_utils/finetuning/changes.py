"""What tuning did to weights: singular values, cuts to a rank, random changes. Notebook 07.

A change ΔW (D_out, D_in) is the weight after tuning less the weight before. Its energy is the sum
of its squares, ‖ΔW‖², which is the sum of its singular values' squares (Eckart & Young 1936: the
first k of them are the best change of rank k).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from course_utils.finetuning.lora import lora_layers

# ── one change ────────────────────────────────────────────────────────────────────────────────────


def energy_shares(change: Tensor) -> Tensor:
    """The share of ‖ΔW‖² that the first 1, 2, 3 … directions hold together: (min(D_out, D_in),).

    ValueError for a change of nothing.

    >>> energy_shares(torch.diag(torch.tensor([1.0, 2.0])))  # squares 4 and 1, of 5
    tensor([0.8000, 1.0000])
    """
    tall = change.double() if change.shape[0] >= change.shape[1] else change.double().T
    energy = torch.linalg.eigvalsh(tall.T @ tall).flip(0).clamp(min=0)  # squared singular values
    if not energy.sum() > 0:
        raise ValueError("the change is 0 everywhere: nothing was trained, or nothing learned")
    return (energy.cumsum(0) / energy.sum()).float()


def cut_to_rank(change: Tensor, k: int) -> Tensor:
    """The best change of rank k: the first k singular directions alone, (D_out, D_in).

    >>> cut_to_rank(torch.diag(torch.tensor([1.0, 2.0])), k=1)
    tensor([[0., 0.],
            [0., 2.]])
    """
    check_directions(change, k)
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    return (u[:, :k] * s[:k]) @ v[:k]


def random_cut(change: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """What a change does to k directions of its input that are drawn at random, (D_out, D_in).

    The control of `cut_to_rank`: also of rank k, but nobody chose the directions.

    >>> x = torch.eye(3)
    >>> cut = random_cut(x, 2, torch.Generator().manual_seed(0))
    >>> torch.linalg.matrix_rank(cut).item(), round(cut.square().sum().item(), 4)  # 2 of 3
    (2, 2.0)
    """
    check_directions(change, k)
    drawn = torch.randn(change.shape[1], k, generator=generator)
    directions = torch.linalg.qr(drawn).Q.to(change)  # (D_in, k), orthonormal
    return (change @ directions) @ directions.T


def noise_like(change: Tensor, generator: torch.Generator) -> Tensor:
    """A change of the same size and norm in which every number is drawn at random.

    >>> noise = noise_like(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.Generator().manual_seed(0))
    >>> round(noise.norm().item(), 5)
    5.0
    """
    noise = torch.randn(change.shape, generator=generator).to(change)
    return noise * (change.norm() / noise.norm())


def check_directions(change: Tensor, k: int) -> None:
    if not 1 <= k <= min(change.shape):
        raise ValueError(f"k is {k}; a change of {tuple(change.shape)} has 1 … {min(change.shape)}")


# ── one adapter ───────────────────────────────────────────────────────────────────────────────────


def random_like(A: Tensor, B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random A' and B' of the same shapes, whose product is as long: ‖B'A'‖ = ‖B A‖.

    The null of an adapter: whatever comes of a change of this size and rank that nobody trained.

    >>> A, B = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]])
    >>> A2, B2 = random_like(A, B, torch.Generator().manual_seed(0))
    >>> round((B2 @ A2).norm().item(), 5)
    5.0
    """
    drawn = [torch.randn(x.shape, generator=generator).to(x) for x in (A, B)]
    factor = ((B @ A).norm() / (drawn[1] @ drawn[0]).norm()).sqrt()
    return factor * drawn[0], factor * drawn[1]


@torch.no_grad()
def randomize_adapters(model: nn.Module, generator: torch.Generator, name: str = "default") -> None:
    """Replace every layer's adapter by a random one of the same rank and norm."""
    for layer in lora_layers(model).values():
        if name in layer.adapters:
            adapter = layer.adapters[name]
            A, B = random_like(adapter.A, adapter.B, generator)
            adapter.A.copy_(A)
            adapter.B.copy_(B)


def update_norm(model: nn.Module, name: str = "default") -> float:
    """‖ΔW‖ over all layers together: the root of the sum of all squares.

    >>> from course_utils.finetuning.lora import inject_lora
    >>> net = nn.Sequential(nn.Linear(4, 4))
    >>> _ = inject_lora(net, "0", rank=1, alpha=1)
    >>> update_norm(net)  # B is 0
    0.0
    """
    held = [m.adapters[name] for m in lora_layers(model).values() if name in m.adapters]
    return math.sqrt(sum(a.update().detach().square().sum().item() for a in held))


# ── all weights ───────────────────────────────────────────────────────────────────────────────────


def weights_of(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Copies of these layers' weights."""
    return {name: model.get_submodule(name).weight.detach().clone() for name in names}


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write weights into their layers.

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> put_weights(net, {"0": torch.eye(2)})
    >>> net[0].weight.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    for name, weight in weights.items():
        model.get_submodule(name).weight.copy_(weight)
