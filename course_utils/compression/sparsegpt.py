"""SparseGPT: remove weights, and let those after them in the row make up for it. Notebook 16.

Frantar & Alistarh 2023: GPTQ's sweep with 0 in place of the nearest number of a grid. Shapes: W
(D_out, D_in), H (D_in, D_in) from `calibration`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from course_utils.compression.gptq import (
    check_block_size,
    damped,
    inverse_factor,
    prepared,
    spread_errors,
)
from course_utils.compression.pruning import check_n_of_m, layer_mask, n_of_m_mask


def saliencies(weight: Tensor, factor: Tensor) -> Tensor:
    """What removing a weight alone costs once the columns before it are done: w²/U[i, i]².

    W (D_out, D_in), and the columns' `inverse_factor` U. LeCun et al. 1990's saliency, as Hassibi &
    Stork 1993 have it.

    >>> import torch
    >>> saliencies(torch.tensor([[1.0, 3.0]]), torch.diag(torch.tensor([0.5, 3.0]))).tolist()
    [[4.0, 1.0]]
    """
    return (weight / factor.diagonal()).square()


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    sparsity: float,
    *,
    damping: float = 0.01,
    block_size: int = 128,
) -> Tensor:
    """W with `sparsity` of each block's weights at 0, chosen when the block's turn comes.

    The weights of a block compete across its rows, as in the authors' code, which however removes
    one more in each block than it says (`<=` a threshold). Algorithm 1.

    >>> import torch
    >>> W, H = torch.tensor([[0.5, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> sparsegpt(W, H, 0.5, damping=0)  # 0.5 goes, and half of it into the next
    tensor([[0.0000, 1.2500]])
    """
    return _swept(
        weight,
        hessian,
        lambda block, factor: layer_mask(saliencies(block, factor), sparsity),
        block_size,
        block_size,
        damping,
    )


def sparsegpt_n_of_m(
    weight: Tensor,
    hessian: Tensor,
    n: int = 2,
    m: int = 4,
    *,
    damping: float = 0.01,
    block_size: int = 128,
) -> Tensor:
    """W with n numbers left of each m neighbours in a row. `block_size` changes the time alone.

    >>> import torch
    >>> W = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    >>> sparsegpt_n_of_m(W, torch.eye(4))
    tensor([[0., 4., 0., 3.]])
    """
    check_n_of_m(n, m, weight.shape[-1])
    check_block_size(block_size)
    return _swept(
        weight,
        hessian,
        lambda block, factor: n_of_m_mask(saliencies(block, factor), n, m),
        m,
        max(m, block_size // m * m),  # blocks end where groups of m end
        damping,
    )


def _swept(
    weight: Tensor,
    hessian: Tensor,
    choose: Callable[[Tensor, Tensor], Tensor],
    width: int,
    block_size: int,
    damping: float,
) -> Tensor:
    """Choose for `width` columns at a time, as they are by then, and spread what goes."""
    work, hessian = prepared(weight, hessian)
    factor, columns = inverse_factor(damped(hessian, damping)), work.T.contiguous()
    kept: list[Tensor] = []

    def snap(i: int) -> Tensor:
        if i % width == 0:
            part = factor[i : i + width, i : i + width]
            kept.extend(choose(columns[i : i + width].T, part).T)
        return columns[i] * kept[i]

    spread_errors(columns, factor, snap, block_size)
    return columns.T.to(weight.dtype).contiguous()
