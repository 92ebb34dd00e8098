"""The exercises of notebook 16, with the mistakes that learners make in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.compression.pruning import MaskKeeper, n_of_m_mask, row_mask, wanda_scores
from course_utils.exercises import Case, ClassExercise, Exercise, Probe, Statement


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ── Wanda's mask ─────────────────────────────────────────────────────────────────────────────────


def wanda_mask(weight: Tensor, x: Tensor, sparsity: float) -> Tensor:
    """True where |W|·‖x‖ is not among the smallest `sparsity` of its row. Sun et al. 2024."""
    return row_mask(wanda_scores(weight, x.norm(dim=0)), sparsity)


def _wanda_inputs() -> Iterator[tuple]:
    for seed, sparsity in ((1, 0.5), (2, 0.25), (3, 0.75)):
        sizes = torch.tensor([0.1, 5.0, 1.0, 0.5, 8.0, 2.0, 0.3, 1.5])
        yield _random(5, 8, seed=seed), _random(20, 8, seed=seed + 10) * sizes, sparsity


def _sizes_alone(weight: Tensor, x: Tensor, sparsity: float) -> Tensor:
    return row_mask(weight.abs(), sparsity)


def _whole_layer(weight: Tensor, x: Tensor, sparsity: float) -> Tensor:
    scores = wanda_scores(weight, x.norm(dim=0))
    return row_mask(scores.reshape(1, -1), sparsity).view_as(scores)


def _largest_go(weight: Tensor, x: Tensor, sparsity: float) -> Tensor:
    return row_mask(-wanda_scores(weight, x.norm(dim=0)), sparsity)


def _squared_norm(weight: Tensor, x: Tensor, sparsity: float) -> Tensor:
    return row_mask(wanda_scores(weight, x.square().sum(dim=0)), sparsity)


def _with_signs(weight: Tensor, x: Tensor, sparsity: float) -> Tensor:
    return row_mask(weight * x.norm(dim=0), sparsity)


def _sum_of_inputs(weight: Tensor, x: Tensor, sparsity: float) -> Tensor:
    return row_mask(wanda_scores(weight, x.sum(dim=0).abs()), sparsity)


# ── two of four ──────────────────────────────────────────────────────────────────────────────────


def two_of_four(scores: Tensor) -> Tensor:
    """True at the two largest scores of each four neighbours in a row."""
    return n_of_m_mask(scores, 2, 4)


def _score_inputs() -> Iterator[tuple]:
    for shape, seed in (((3, 8), 1), ((4, 4), 2), ((2, 16), 3)):
        yield (_random(*shape, seed=seed).abs(),)


def _half_a_row(scores: Tensor) -> Tensor:
    return row_mask(scores, 0.5)


def _down_the_columns(scores: Tensor) -> Tensor:
    n = scores.shape[0] // 4 * 4
    mask = torch.ones_like(scores, dtype=torch.bool)
    if n:
        mask[:n] = n_of_m_mask(scores[:n].T.contiguous(), 2, 4).T
    return mask


def _every_other(scores: Tensor) -> Tensor:
    return (torch.arange(scores.shape[1]) % 2 == 0).expand(scores.shape)


def _two_smallest(scores: Tensor) -> Tensor:
    return n_of_m_mask(-scores, 2, 4)


# ── bytes of a sparse weight ─────────────────────────────────────────────────────────────────────


def sparse_bytes(rows: int, kept: int, value_bytes: int = 4, index_bytes: int = 8) -> int:
    """Bytes of `kept` numbers in compressed rows: values, a column each, rows + 1 beginnings."""
    return kept * (value_bytes + index_bytes) + (rows + 1) * index_bytes


def _bytes_inputs() -> Iterator[tuple]:
    yield 384, 384 * 1152, 4, 8
    yield 10, 0, 4, 8
    yield 1536, 100, 2, 4


def _values_alone(rows: int, kept: int, value_bytes: int = 4, index_bytes: int = 8) -> int:
    return kept * value_bytes


def _without_rows(rows: int, kept: int, value_bytes: int = 4, index_bytes: int = 8) -> int:
    return kept * (value_bytes + index_bytes)


def _one_row_short(rows: int, kept: int, value_bytes: int = 4, index_bytes: int = 8) -> int:
    return kept * (value_bytes + index_bytes) + rows * index_bytes


def _a_row_each(rows: int, kept: int, value_bytes: int = 4, index_bytes: int = 8) -> int:
    return kept * (value_bytes + 2 * index_bytes)


# ── a smaller feed-forward layer ─────────────────────────────────────────────────────────────────


def smaller(up: Tensor, up_bias: Tensor, down: Tensor, kept: list[int]) -> tuple[Tensor, ...]:
    """Weights of down(f(up x + b)) with these hidden units alone: (n, D), (n,), (D, n)."""
    return up[kept], up_bias[kept], down[:, kept]


def _smaller_inputs() -> Iterator[tuple]:
    for hidden, kept in ((4, [0, 3]), (6, [5, 1, 2]), (4, [2])):
        yield _random(hidden, 4, seed=hidden), _random(hidden), _random(4, hidden, seed=9), kept


def _columns_of_up(up: Tensor, up_bias: Tensor, down: Tensor, kept: list[int]) -> tuple:
    return up[:, kept], up_bias, down[kept]


def _zeros_in_place(up: Tensor, up_bias: Tensor, down: Tensor, kept: list[int]) -> tuple:
    mask = torch.zeros(len(up)).index_fill(0, torch.tensor(kept), 1.0)
    return up * mask[:, None], up_bias * mask, down * mask


def _whole_bias(up: Tensor, up_bias: Tensor, down: Tensor, kept: list[int]) -> tuple:
    return up[kept], up_bias, down[:, kept]


def _down_left_alone(up: Tensor, up_bias: Tensor, down: Tensor, kept: list[int]) -> tuple:
    return up[kept], up_bias[kept], down


# ── a keeper of masks ────────────────────────────────────────────────────────────────────────────


MASK = torch.tensor([[True, False, True, False], [False, True, True, False]])
X = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.5, -1.0, 2.0, 1.0], [-1.0, 1.0, 1.0, 2.0]])


def _layer() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """A small net with fixed weights, and an optimizer with momentum from a step before."""
    net = nn.Sequential(nn.Linear(4, 2))
    net[0].weight.data = torch.tensor([[0.5, -0.5, 1.0, 0.25], [1.0, 0.5, -1.0, 0.75]])
    net[0].bias.data.zero_()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    _step(net, optimizer)
    return net, optimizer


def _step(net: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(X).square().sum().backward()
    optimizer.step()


def _at_once(cls: type) -> Any:
    net, optimizer = _layer()
    cls(net, optimizer).keep({"0": MASK})
    return net[0].weight.detach().clone()


def _after_steps(cls: type) -> Any:
    net, optimizer = _layer()
    keeper = cls(net, optimizer)
    keeper.keep({"0": MASK})
    for _ in range(3):
        _step(net, optimizer)
    del keeper
    return net[0].weight.detach()[~MASK].clone()


def _the_others(cls: type) -> Any:
    net, optimizer = _layer()
    keeper = cls(net, optimizer)
    keeper.keep({"0": MASK})
    _step(net, optimizer)
    del keeper
    return net[0].weight.detach()[MASK].clone()


def _new_masks(cls: type) -> Any:
    net, optimizer = _layer()
    keeper = cls(net, optimizer)
    keeper.keep({"0": MASK})
    keeper.keep({"0": ~MASK})
    _step(net, optimizer)
    del keeper
    return {
        "what goes now": net[0].weight.detach()[MASK].ne(0),
        "what may learn again": net[0].weight.detach()[~MASK].ne(0),
    }


class _Once(MaskKeeper):
    """Zeros at once, and never again."""

    def keep(self, masks: dict) -> None:
        super().keep(masks)
        self.release()


class _GradientsAlone(MaskKeeper):
    """Masked gradients; nobody sets weights to 0 after a step."""

    def keep(self, masks: dict) -> None:
        super().keep(masks)
        self._after_step.remove()


class _NotAtOnce(MaskKeeper):
    """Waits for the first step."""

    def keep(self, masks: dict) -> None:
        before = {n: self.model.get_submodule(n).weight.detach().clone() for n in masks}
        super().keep(masks)
        for name, weight in before.items():
            self.model.get_submodule(name).weight.data.copy_(weight)


class _OldMasksStay(MaskKeeper):
    """The masks pile up."""

    def keep(self, masks: dict) -> None:
        old = dict(self.masks)
        super().keep({n: m & old[n] if n in old else m for n, m in masks.items()})


class _Upside(MaskKeeper):
    """True is taken for what goes."""

    def keep(self, masks: dict) -> None:
        super().keep({name: ~mask for name, mask in masks.items()})


EXERCISES = {
    "wanda_mask": Exercise(
        reference=wanda_mask,
        hint="scores = weight.abs() * x.norm(dim=0): one norm for each input, the same for all "
        "rows. n = round(sparsity * weight.shape[1]) of each row go: scores.argsort(dim=1)[:, :n] "
        "says which, and mask.scatter_(1, those, False) takes them out of a mask of ones.",
        cases=(
            Case(
                (torch.tensor([[-3.0, 1.0], [2.0, -4.0]]), torch.tensor([[1.0, 3], [0, 4]]), 0.5),
                torch.tensor([[False, True], [False, True]]),
                why="The norms are 1 and 5. In the first row 3 · 1 < 1 · 5, in the second 2 < 20.",
            ),
            Case(
                (torch.tensor([[5.0, 4.0], [2.0, 1.0]]), torch.eye(2), 0.5),
                torch.tensor([[True, False], [True, False]]),
                why="With equal inputs the smaller weight of each row goes.",
            ),
        ),
        inputs=_wanda_inputs,
        mistakes={
            "the inputs are left out: that is magnitude": _sizes_alone,
            "all weights of the layer compete, not those of a row": _whole_layer,
            "the largest go, or True stands where a weight goes": _largest_go,
            "the norm is not rooted: its square outweighs the weight": _squared_norm,
            "signs count: large negative weights go first": _with_signs,
            "inputs are summed, so that plus and minus cancel": _sum_of_inputs,
        },
    ),
    "two_of_four": Exercise(
        reference=two_of_four,
        hint="groups = scores.reshape(-1, 4); groups.topk(2, dim=1).indices says which two stay. "
        "Start from a mask of zeros, scatter_ True there, and give it the old shape.",
        cases=(
            Case(
                (torch.tensor([[1.0, 4.0, 3.0, 2.0]]),),
                torch.tensor([[False, True, True, False]]),
                why="4 and 3 are the largest of the four.",
            ),
            Case(
                (torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0]]),),
                torch.tensor([[True, True, False, False, False, False, True, True]]),
                why="Two of the first four, and two of the last four, though 7 and 6 are larger.",
            ),
        ),
        inputs=_score_inputs,
        mistakes={
            "half of each row stays, wherever it is": _half_a_row,
            "groups run down the columns": _down_the_columns,
            "every other weight stays, whatever its score": _every_other,
            "the two smallest stay": _two_smallest,
        },
    ),
    "sparse_bytes": Exercise(
        reference=sparse_bytes,
        hint="Each number that is kept brings itself and its column; each row brings the place "
        "where it begins, and one more place says where the last ends.",
        cases=(
            Case((2, 5, 4, 8), 84, why="5 · (4 + 8) + 3 · 8"),
            Case((1, 1, 2, 2), 8, why="1 · (2 + 2) + 2 · 2"),
        ),
        inputs=_bytes_inputs,
        mistakes={
            "only the numbers are counted, not where they stand": _values_alone,
            "the beginnings of rows are forgotten": _without_rows,
            "the end of the last row is forgotten": _one_row_short,
            "each number has its row beside it: that is the coordinate format": _a_row_each,
        },
    ),
    "smaller": Exercise(
        reference=smaller,
        hint="A hidden unit is a row of up, a number of up_bias, and a column of down.",
        cases=(
            Case(
                (
                    torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
                    torch.tensor([5.0, 6.0]),
                    torch.tensor([[7.0, 8.0], [9.0, 10.0]]),
                    [1],
                ),
                (torch.tensor([[3.0, 4.0]]), torch.tensor([6.0]), torch.tensor([[8.0], [10.0]])),
                why="Unit 1: the second row of up, its bias, the second column of down.",
            ),
        ),
        inputs=_smaller_inputs,
        mistakes={
            "columns of up and rows of down are taken": _columns_of_up,
            "the others are set to 0, and the matrices are as large as before": _zeros_in_place,
            "the bias keeps all of its numbers": _whole_bias,
            "down keeps all of its columns": _down_left_alone,
        },
    ),
    "mask_keeper": ClassExercise(
        reference=MaskKeeper,
        hint="keep(masks) remembers the masks and sets weights to 0, with torch.no_grad(). In "
        "__init__, optimizer.register_step_post_hook(f) has f(optimizer, args, kwargs) called "
        "after each step: set them to 0 again there.",
        probes=(
            Probe("zeros at once", _at_once, why="keep() itself sets what is False to 0."),
            Probe(
                "zeros after each step",
                _after_steps,
                why="The optimizer has momentum from before: it moves weights without gradient.",
            ),
            Probe("the others learn", _the_others),
            Probe(
                "new masks take the place of the old",
                _new_masks,
                why="A schedule calls keep() again and again.",
            ),
        ),
        mistakes={
            "weights are set to 0 once, and the next step moves them": _Once,
            "gradients are masked, but momentum moves the weights": _GradientsAlone,
            "nothing happens before the first step": _NotAtOnce,
            "the old masks stay beside the new": _OldMasksStay,
            "True is taken for what goes": _Upside,
        },
    ),
}

STATEMENTS = {
    "verdicts": {
        "a": Statement(
            "The smallest fifth of each row can go without retraining, and hardly a vector moves.",
            supported=True,
            why="As many random ones turned the vectors far.",
        ),
        "b": Statement(
            "Small weights are unimportant weights.",
            supported=False,
            why="A small weight on a large input matters: at half and above, inputs counted.",
        ),
        "c": Statement(
            "A model with 70 % zeros is a smaller file and a faster model.",
            supported=False,
            why="Same bytes, same multiplications. Only what is cut out of the matrices saves.",
        ),
        "d": Statement(
            "Retraining brings back part of what pruning broke, and the zeros stay.",
            supported=True,
            why="The vectors came back towards those of the whole model; the share of zeros was "
            "the same before and after.",
        ),
        "e": Statement(
            "At as many weights gone, it does not matter whether they are whole neurons.",
            supported=False,
            why="Single weights, freely chosen, cost less of the vectors than half of the neurons.",
        ),
        "f": Statement(
            "Half of the weights can go from any language model.",
            supported=False,
            why="One small encoder was looked at, and at a half its vectors had already moved.",
        ),
        "g": Statement(
            "A winning ticket wins by the exact numbers that its weights started with.",
            supported=False,
            why="With their signs alone, all of one size, it learned as well.",
        ),
        "h": Statement(
            "Fresh weights gain from the exact places of a ticket's pattern.",
            supported=False,
            why="With as many weights on each input, in places drawn anew, most of the gain was "
            "there too.",
        ),
    },
}
