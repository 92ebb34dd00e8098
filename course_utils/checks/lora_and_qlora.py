"""The exercises of notebook 07, with the mistakes that learners make in them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.exercises import Case, ClassExercise, Exercise, Probe, Statement
from course_utils.finetuning.changes import cut_to_rank, random_like
from course_utils.finetuning.lora import lora_parameters
from course_utils.finetuning.lora_plain import PlainLoRA


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ── the layer ────────────────────────────────────────────────────────────────────────────────────

X = _random(1, 5, 3)


def _linear(d_in: int = 3, d_out: int = 4) -> nn.Linear:
    """A linear layer whose numbers are the same each time."""
    linear = nn.Linear(d_in, d_out)
    linear.weight.data, linear.bias.data = _random(2, d_out, d_in), _random(3, d_out)
    return linear


def _trained(cls: type, rank: int, alpha: float) -> Any:
    """A layer as after training: A and B are set by hand."""
    layer = cls(_linear(), rank, alpha)
    with torch.no_grad():
        layer.A.copy_(_random(4, rank, 3))
        layer.B.copy_(_random(5, 4, rank))
    return layer


def _shapes(cls: type) -> dict[str, list[int]]:
    layer = cls(_linear(), 2, 2)
    return {"the shape of A": list(layer.A.shape), "the shape of B": list(layer.B.shape)}


def _start(cls: type) -> Tensor:
    return cls(_linear(), 2, 2)(X)


def _learning(cls: type) -> dict[str, Any]:
    layer = cls(_linear(), 2, 2)
    found = sorted(list(p.shape) for p in layer.parameters() if p.requires_grad)
    return {"the shapes of what learns": found}


def _first_gradient(cls: type) -> dict[str, bool]:
    layer = cls(_linear(), 2, 2)
    layer(X).square().sum().backward()
    reached = {name: getattr(layer, name).grad for name in "AB"}
    return {
        f"a gradient reaches {name} in the first step": bool(g is not None and g.abs().max() > 0)
        for name, g in reached.items()
    }


def _update(cls: type) -> Tensor:
    return _trained(cls, rank=2, alpha=2)(X)  # α/r = 1


def _scaled(cls: type) -> Tensor:
    return _trained(cls, rank=2, alpha=6)(X)


def _any_shape(cls: type) -> Tensor:
    return _trained(cls, rank=2, alpha=2)(_random(6, 2, 7, 3))


def _merged(cls: type) -> dict[str, Any]:
    merged = _trained(cls, rank=2, alpha=6).merge()
    kind = "nn.Linear" if type(merged) is nn.Linear else type(merged).__name__
    return {"what merge() gives": kind, "what it answers": merged(X)}


def _after_merging(cls: type) -> dict[str, Any]:
    layer = _trained(cls, rank=2, alpha=6)
    layer.merge()
    return {"the layer's answer after merge()": layer(X), "merged once more": layer.merge()(X)}


class _BRandom(PlainLoRA):
    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear, rank, alpha)
        self.B.data = _random(7, *self.B.shape)


class _BothZero(PlainLoRA):
    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear, rank, alpha)
        self.A.data.zero_()


class _AZero(PlainLoRA):
    """The zeros are in A; also possible, but peft's files and the paper have them in B."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear, rank, alpha)
        self.A.data.zero_()
        self.B.data = _random(7, *self.B.shape)


class _NotFrozen(PlainLoRA):
    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear, rank, alpha)
        self.linear.requires_grad_(True)


class _BiasLearns(PlainLoRA):
    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear, rank, alpha)
        if self.linear.bias is not None:
            self.linear.bias.requires_grad_(True)


class _ScaledByAlpha(PlainLoRA):
    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear, rank, alpha)
        self.scale = alpha


class _ScaledByRoot(PlainLoRA):
    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear, rank, alpha)
        self.scale = alpha / math.sqrt(rank)


class _Unscaled(PlainLoRA):
    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear, rank, alpha)
        self.scale = 1.0


class _ScaledTwice(PlainLoRA):
    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear, rank, alpha)
        self.scale = (alpha / rank) ** 2


class _WithoutTheFrozen(PlainLoRA):
    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.A.T) @ self.B.T


class _BiasTwice(PlainLoRA):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.linear.bias is None else y + self.linear.bias


class _AlwaysTwoDimensions(PlainLoRA):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1]))


class _MergedUnscaled(PlainLoRA):
    @torch.no_grad()
    def merge(self) -> nn.Linear:
        merged = copy.deepcopy(self.linear)
        merged.weight += self.B @ self.A
        return merged


class _MergedInPlace(PlainLoRA):
    """The frozen layer itself is changed, so that the adapter counts twice from then on."""

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        self.linear.weight += self.scale * self.B @ self.A
        return self.linear


class _MergedSubtracted(PlainLoRA):
    @torch.no_grad()
    def merge(self) -> nn.Linear:
        merged = copy.deepcopy(self.linear)
        merged.weight -= self.scale * self.B @ self.A
        return merged


class _MergedWithoutBias(PlainLoRA):
    @torch.no_grad()
    def merge(self) -> nn.Linear:
        merged = super().merge()
        merged.bias.zero_()
        return merged


# ── counting ─────────────────────────────────────────────────────────────────────────────────────


def _count_inputs() -> Iterator[tuple]:
    yield from ((576, 192, 8), (576, 1536, 8), (1536, 576, 64), (10, 20, 1))


# ── a random adapter of equal norm ───────────────────────────────────────────────────────────────


def random_adapter(A: Tensor, B: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Random A' and B' of the same shapes with ‖B'A'‖ = ‖B A‖."""
    return random_like(A, B, torch.Generator().manual_seed(seed))


def _looked_at(function: Callable, A: Tensor, B: Tensor, seed: int) -> list[Any]:
    """What must be so of any random adapter, whatever its numbers are; None for no answer."""
    found = function(A.clone(), B.clone(), seed)
    if found is None or found is ...:
        return found
    A2, B2 = found
    if (A2.shape, B2.shape) != (A.shape, B.shape):
        return ["its shapes are", [list(A2.shape), list(B2.shape)]]
    old, new = B @ A, B2 @ A2
    cosine = torch.cosine_similarity(old.flatten(), new.flatten(), dim=0).abs().item()
    other = function(A.clone(), B.clone(), seed + 1)
    return [
        "the norm of B'A', over that of B A, and of another seed's:",
        [round((new.norm() / old.norm()).item(), 3),
         round(((other[1] @ other[0]).norm() / old.norm()).item(), 3)],
        "has it kept the old direction?",
        cosine > 0.9,
        "is another seed's the same?",
        bool(torch.allclose(other[1] @ other[0], new)),
    ]  # fmt: skip


def _adapter_inputs() -> Iterator[tuple]:
    for seed in range(3):
        yield _random(seed, 4, 30), 0.1 * _random(seed + 10, 20, 4), seed


def _same_adapter(A: Tensor, B: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    return A, B


def _drawn(A: Tensor, B: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(x.shape, generator=generator) for x in (A, B))


def _factors_norms(A: Tensor, B: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    A2, B2 = _drawn(A, B, seed)
    return A2 * A.norm() / A2.norm(), B2 * B.norm() / B2.norm()


def _whole_factor_twice(A: Tensor, B: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    A2, B2 = _drawn(A, B, seed)
    factor = (B @ A).norm() / (B2 @ A2).norm()
    return factor * A2, factor * B2


# ── a cut to a rank ──────────────────────────────────────────────────────────────────────────────


def _cut_inputs() -> Iterator[tuple]:
    for seed, k in ((0, 1), (1, 3), (2, 4)):
        yield _random(seed, 6, 4), k


def _smallest(change: Tensor, k: int) -> Tensor:
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    return (u[:, -k:] * s[-k:]) @ v[-k:]


def _without_values(change: Tensor, k: int) -> Tensor:
    u, _, v = torch.linalg.svd(change, full_matrices=False)
    return u[:, :k] @ v[:k]


def _rows_alone(change: Tensor, k: int) -> Tensor:
    cut = torch.zeros_like(change)
    cut[:k] = change[:k]
    return cut


def _v_transposed(change: Tensor, k: int) -> Tensor:
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    return (u[:, :k] * s[:k]) @ v.T[:k]


EXERCISES = {
    "lora": ClassExercise(
        reference=PlainLoRA,
        hint="Freeze the linear layer with .requires_grad_(False). A is (rank, D_in) and random, B "
        "(D_out, rank) and zero, both nn.Parameter. forward: linear(x) + α/r · (x Aᵀ) Bᵀ. merge: "
        "copy the linear layer, add α/r · B A to its weight under torch.no_grad(), return it.",
        probes=(
            Probe("A is (r, D_in) and B is (D_out, r)", _shapes),
            Probe(
                "at the start it answers as the frozen layer",
                _start,
                "Tuning begins where the model is: B A must be 0, and so one of the two.",
            ),
            Probe(
                "A and B learn, and nothing else",
                _learning,
                "The frozen layer's weight and bias have requires_grad False.",
            ),
            Probe(
                "the first step's gradient reaches B, and not yet A",
                _first_gradient,
                "B's gradient holds A as a factor, and A's holds B: were both 0, neither would "
                "ever move.",
            ),
            Probe("it adds B A x", _update, "Here α = r, so that the scale is 1."),
            Probe("the addition is scaled by α/r", _scaled, "Here α = 6 and r = 2."),
            Probe("it takes (batch, tokens, D_in) too", _any_shape),
            Probe("merge() gives one nn.Linear that answers the same", _merged),
            Probe(
                "merging leaves the layer as it was",
                _after_merging,
                "Else the adapter counts twice: once in the weight, once beside it.",
            ),
        ),
        mistakes={
            "B is random too, so that the model is another one at the start": _BRandom,
            "A is 0 as well as B": _BothZero,
            "the zeros are in A and not in B (the paper and peft have them in B)": _AZero,
            "the linear layer is not frozen": _NotFrozen,
            "the linear layer's bias is not frozen": _BiasLearns,
            "the scale is α, and not α/r": _ScaledByAlpha,
            "the scale is α/√r: that is rsLoRA's": _ScaledByRoot,
            "nothing is scaled": _Unscaled,
            "the scale is multiplied in twice": _ScaledTwice,
            "the frozen layer's own answer is left out": _WithoutTheFrozen,
            "the bias is added once more": _BiasTwice,
            "the input is flattened to two dimensions and not shaped back": _AlwaysTwoDimensions,
            "merge() forgets the scale": _MergedUnscaled,
            "merge() changes the frozen layer itself": _MergedInPlace,
            "merge() subtracts": _MergedSubtracted,
            "merge() loses the bias": _MergedWithoutBias,
        },
    ),
    "count": Exercise(
        reference=lora_parameters,
        hint="A has r rows of D_in numbers, B has D_out rows of r.",
        cases=(
            Case((2, 3, 1), 5, why="A is 1 × 2, B is 3 × 1: 2 + 3."),
            Case((576, 576, 8), 9216, why="8 · (576 + 576)."),
        ),
        inputs=_count_inputs,
        mistakes={
            "the sizes are multiplied: that is what the product has, B A": (
                lambda d_in, d_out, rank: d_in * d_out
            ),
            "r is multiplied with both sizes": lambda d_in, d_out, rank: rank * d_in * d_out,
            "A alone is counted": lambda d_in, d_out, rank: rank * d_in,
            "B alone is counted": lambda d_in, d_out, rank: rank * d_out,
            "B is taken for as large as A": lambda d_in, d_out, rank: 2 * rank * d_in,
            "r² is added for a matrix between the two, which LoRA has not": (
                lambda d_in, d_out, rank: rank * (d_in + d_out) + rank * rank
            ),
        },
    ),
    "cut": Exercise(
        reference=cut_to_rank,
        hint="u, s, v = torch.linalg.svd(change, full_matrices=False). The first k columns of u, "
        "the first k numbers of s, the first k *rows* of v (torch's third is transposed already).",
        cases=(
            Case(
                (torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 1),
                torch.tensor([[3.0, 0.0], [0.0, 0.0]]),
                why="The singular values are 3 and 1; the larger one stays.",
            ),
        ),
        inputs=_cut_inputs,
        mistakes={
            "the smallest directions are kept": _smallest,
            "the singular values are left out": _without_values,
            "the first k rows are kept, whatever they hold": _rows_alone,
            "v is transposed once more": _v_transposed,
        },
        atol=1e-4,
    ),
    "random_adapter": Exercise(
        reference=random_adapter,
        hint="Draw both with torch.randn(shape, generator=torch.Generator().manual_seed(seed)). "
        "Then compare the norms of the two *products* and share the factor out: its root for each.",
        cases=(
            Case(
                (torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[1.0], [0.0]]), 0),
                [
                    "the norm of B'A', over that of B A, and of another seed's:",
                    [1.0, 1.0],
                    "has it kept the old direction?",
                    False,
                    "is another seed's the same?",
                    False,
                ],
                why="‖B A‖ is 5 here, and so must ‖B'A'‖ be.",
            ),
        ),
        inputs=_adapter_inputs,
        mistakes={
            "nothing is drawn": _same_adapter,
            "the numbers are drawn and not scaled": _drawn,
            "A and B keep their own norms, and the product does not": _factors_norms,
            "both are multiplied by the whole factor, and the product by its square": (
                _whole_factor_twice
            ),
        },
        solution=(random_like,),
        through=_looked_at,
        atol=2e-3,
    ),
}

STATEMENTS = {
    "verdicts": {
        "a": Statement(
            "At the same learning rate LoRA learns less than full tuning, so it is weaker.",
            supported=False,
            why="At full tuning's rate it learns less; at its own it comes close. A comparison at "
            "one rate compares rates.",
        ),
        "b": Statement(
            "A few directions of what full tuning changed carry most of what it gained.",
            supported=True,
            why="The best eight of 384 kept nearly all of it; eight random ones did not.",
        ),
        "c": Statement(
            "At rank 8 LoRA trains about 90 % fewer of SmolLM2's numbers.",
            supported=False,
            why="Counted: far fewer than that even with adapters on all linear layers.",
        ),
        "d": Statement(
            "QLoRA makes training faster.",
            supported=False,
            why="No time was measured. It saves bytes of weights; each pass has to unpack them.",
        ),
        "e": Statement(
            "A trained adapter may be merged into any base without loss.",
            supported=False,
            why="Into floats, yes. Into 4 bits most of it was rounded away.",
        ),
        "f": Statement(
            "Any change of this size to the weights would have helped as much.",
            supported=False,
            why="A random adapter of equal rank and norm gained nothing.",
        ),
        "g": Statement(
            "One base can serve several tasks, an adapter each.",
            supported=True,
            why="Each adapter lowered its own task's loss, and they were swapped in place.",
        ),
    },
}
