"""A frozen model behind learned vectors: soft prompts, and prefixes in the cache. Notebook 08.

Lester et al. 2021 (prompt tuning) learn P embeddings that stand before the text's; Li & Liang 2021
(prefix-tuning) learn the keys and values of P steps in every layer. Shapes: P prompt vectors,
D = d_model, V = vocab_size, L layers, G key–value heads, H numbers per head; B texts of T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.architectures.decoder import Decoder
from course_utils.architectures.kv_cache import KVCache
from course_utils.architectures.layers import check_positive, one_each

# ── where a prompt starts ─────────────────────────────────────────────────────────────────────────


def random_prompt(
    n: int, d_model: int, std: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """(P, D) normal numbers. With deviation 1, as in peft, their rows have length √D.

    >>> random_prompt(5, 576).norm(dim=1).mean().round(decimals=-1)  # a real word's is about 3
    tensor(20.)
    """
    check_positive(n=n, d_model=d_model)
    return std * torch.randn(n, d_model, generator=generator)


def sampled_prompt(table: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """(P, D): embeddings of words drawn from a table (V, D), with repeats.

    Lester et al. 2021, section 2.1.1, draw from the 5,000 most common words: give `table[:5000]`
    where the vocabulary is sorted so.

    >>> sampled_prompt(torch.tensor([[7.0, 8.0]]), n=2)
    tensor([[7., 8.],
            [7., 8.]])
    """
    check_positive(n=n)
    return table.detach()[torch.randint(len(table), (n,), generator=generator)].clone()


def text_prompt(table: Tensor, ids: Sequence[int], n: int) -> Tensor:
    """(P, D): the embeddings of a text's tokens, cut off or said again until there are n.

    >>> text_prompt(torch.arange(4.0).view(4, 1), [3, 1], n=5).flatten()
    tensor([3., 1., 3., 1., 3.])
    """
    check_positive(n=n)
    if not len(ids):
        raise ValueError("ids hold no token; give a text to start from")
    return table.detach()[[ids[i % len(ids)] for i in range(n)]].clone()


def label_prompt(
    table: Tensor,
    labels: Sequence[Sequence[int]],
    n: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(P, D): one vector a class, the mean of its name's tokens, then words drawn from the table.

    Lester et al. 2021, section 2.1.1 ("class label"). ValueError for more classes than vectors.

    >>> label_prompt(torch.tensor([[0.0], [2.0], [5.0]]), labels=[[0, 1], [2]], n=2)
    tensor([[1.],
            [5.]])
    """
    if not 0 < len(labels) <= n:
        raise ValueError(f"{len(labels)} labels, {n} vectors; give each label one")
    if not all(len(ids) for ids in labels):
        raise ValueError("a label has no token; give each at least one")
    means = torch.stack([table.detach()[list(ids)].mean(dim=0) for ids in labels])
    if len(labels) == n:
        return means
    return torch.cat([means, sampled_prompt(table, n - len(labels), generator)])


def nearest_words(vectors: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The word whose embedding points most nearly where each vector does: ids and cosines (P,).

    >>> nearest_words(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    (tensor([1]), tensor([0.8000]))
    """
    cosines = F.normalize(vectors.detach(), dim=1) @ F.normalize(table.detach(), dim=1).T  # (P, V)
    best = cosines.max(dim=1)
    return best.indices, best.values


# ── soft prompt ───────────────────────────────────────────────────────────────────────────────────


class PromptTuned(nn.Module):
    """A frozen model whose text begins with P learned vectors.

    `model(ids, mask)` is any net that reads ids (B, T); `embedding` is its table. The vectors take
    the place of what the table says of P ids set before the text, so that the model needs no other
    entrance.
    """

    def __init__(self, model: nn.Module, embedding: nn.Embedding, vectors: Tensor) -> None:
        super().__init__()
        if vectors.ndim != 2 or vectors.shape[1] != embedding.embedding_dim or not len(vectors):
            raise ValueError(
                f"the vectors are {tuple(vectors.shape)}; give (P, {embedding.embedding_dim}), "
                "with P of at least 1"
            )
        self.model = model.requires_grad_(False)
        self.vectors = nn.Parameter(vectors.detach().clone().float())
        self._embedding = [embedding]  # in a list, so that it is not registered a second time

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids (B, T) -> what the model says of all P + T steps, mostly logits (B, P + T, V)."""
        n = len(self.vectors)
        if mask is not None:
            mask = F.pad(mask, (n, 0), value=1)
        with self._instead_of_the_first(n):
            return self.model(F.pad(ids, (n, 0)), mask)

    @contextmanager
    def _instead_of_the_first(self, n: int) -> Iterator[None]:
        def replace(module: nn.Module, inputs: object, embedded: Tensor) -> Tensor:
            front = self.vectors.to(embedded.dtype).expand(len(embedded), -1, -1)
            return torch.cat([front, embedded[:, n:]], dim=1)  # (B, P + T, D)

        handle = self._embedding[0].register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def predictions(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids (B, T) -> logits *of* each of them (B, T, V), given the prompt and those before it.

        The first token too has something before it here; `label_loss` takes these as they are.
        """
        return self(ids, mask)[:, len(self.vectors) - 1 : -1]


# ── prefix ────────────────────────────────────────────────────────────────────────────────────────


def split_prefix(flat: Tensor, n_layers: int, n_kv_heads: int) -> tuple[Tensor, Tensor]:
    """(P, L·2·G·H), as peft keeps a prefix -> keys and values (L, G, P, H).

    >>> keys, values = split_prefix(torch.arange(8.0).view(1, 8), n_layers=2, n_kv_heads=1)
    >>> keys.flatten().tolist(), values.flatten().tolist()
    ([0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0])
    """
    if flat.shape[1] % (2 * n_layers * n_kv_heads):
        raise ValueError(
            f"a row has {flat.shape[1]} numbers; {n_layers} layers of {n_kv_heads} key and "
            f"{n_kv_heads} value heads need a multiple of {2 * n_layers * n_kv_heads}"
        )
    parts = flat.view(len(flat), n_layers, 2, n_kv_heads, -1)
    keys, values = parts.permute(2, 1, 3, 0, 4)  # (P, L, 2, G, H) -> (2, L, G, P, H)
    return keys, values


class FreePrefix(nn.Module):
    """Keys and values (L, G, P, H), each number learned on its own."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        if keys.ndim != 4 or keys.shape != values.shape:
            shapes = f"keys {tuple(keys.shape)}, values {tuple(values.shape)}"
            raise ValueError(f"{shapes}; give both as (layers, heads, steps, size)")
        self.keys = nn.Parameter(keys.detach().clone())
        self.values = nn.Parameter(values.detach().clone())

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class ProjectedPrefix(nn.Module):
    """Keys and values made from P vectors by two layers, which steadies training.

    Li & Liang 2021, section 4.3; what the layers say is kept after training, and they are not.
    """

    def __init__(self, n: int, d_hidden: int, n_layers: int, n_kv_heads: int, d_head: int) -> None:
        super().__init__()
        check_positive(n=n, d_hidden=d_hidden)
        self.n_layers, self.n_kv_heads, width = n_layers, n_kv_heads, n_kv_heads * d_head
        self.vectors = nn.Parameter(torch.randn(n, width))
        self.up = nn.Linear(width, d_hidden)
        self.down = nn.Linear(d_hidden, n_layers * 2 * width)

    def forward(self) -> tuple[Tensor, Tensor]:
        flat = self.down(torch.tanh(self.up(self.vectors)))  # (P, L·2·G·H)
        return split_prefix(flat, self.n_layers, self.n_kv_heads)


@torch.no_grad()
def prefix_of(decoder: Decoder, ids: Tensor) -> FreePrefix:
    """The keys and values that a decoder makes of a text (1, P): a start in real activations.

    Li & Liang 2021, section 7.4. Until it is trained, it does what the text would do.
    """
    cache = KVCache(decoder.config.n_layers)
    decoder(ids[:1], cache=cache, last_only=True)
    return _first_row(cache)


@torch.no_grad()
def prompt_as_prefix(tuned: PromptTuned) -> FreePrefix:
    """A soft prompt as the prefix that it is: read once, and then only kept in the cache."""
    n, decoder = len(tuned.vectors), tuned.model
    cache, ids = KVCache(decoder.config.n_layers), torch.zeros(1, n, dtype=torch.long)
    with tuned._instead_of_the_first(n):
        decoder(ids.to(tuned.vectors.device), cache=cache, last_only=True)
    return _first_row(cache)


def _first_row(cache: KVCache) -> FreePrefix:
    """(B, G, P, H) of each layer -> (L, G, P, H)."""
    keys = torch.stack([layer.keys[0, :, : layer.length] for layer in cache.layers])
    values = torch.stack([layer.values[0, :, : layer.length] for layer in cache.layers])
    return FreePrefix(keys, values)


def side_by_side(prefixes: Sequence[FreePrefix]) -> KVCache:
    """A cache with a row for each prefix: texts of one batch, each behind a prompt of its own.

    ValueError for prefixes of different lengths.
    """
    if not prefixes or len({prefix.keys.shape for prefix in prefixes}) > 1:
        shapes = [tuple(prefix.keys.shape) for prefix in prefixes]
        raise ValueError(f"the keys are {shapes}; give one or more prefixes of the same shape")
    cache = KVCache(len(prefixes[0].keys))
    for i, layer in enumerate(cache.layers):
        keys, values = ([getattr(p, part)[i] for p in prefixes] for part in ("keys", "values"))
        layer.extend(torch.stack(keys).detach(), torch.stack(values).detach())  # (B, G, P, H)
    return cache


class _Front:
    """Stands for a layer's cache in training: what is learned, before what is read."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values  # (G, P, H)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        front = (len(k), -1, -1, -1)
        keys = torch.cat([self.keys.to(k.dtype).expand(*front), k], dim=2)  # (B, G, P + T, H)
        return keys, torch.cat([self.values.to(v.dtype).expand(*front), v], dim=2)


class _Fronts:
    """A `KVCache` through which gradients pass, for one reading."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.length = keys.shape[2]
        self.layers = [_Front(k, v) for k, v in zip(keys, values, strict=True)]


class PrefixTuned(nn.Module):
    """A frozen `Decoder` in whose cache P learned steps stand before any text.

    `prefix()` gives their keys and values: a `FreePrefix` or a `ProjectedPrefix`. The text's
    positions go on after them.
    """

    def __init__(self, decoder: Decoder, prefix: nn.Module) -> None:
        super().__init__()
        config, attention = decoder.config, decoder.blocks[0].attention
        keys, _ = prefix()
        layers, heads, _, size = keys.shape
        if (layers, heads, size) != (config.n_layers, attention.n_kv_heads, attention.d_head):
            raise ValueError(
                f"the prefix has {layers} layers of {heads} heads of size {size}; the decoder "
                f"{config.n_layers} of {attention.n_kv_heads} of {attention.d_head}"
            )
        self.model, self.prefix = decoder.requires_grad_(False), prefix

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, *, last_only: bool = False
    ) -> Tensor:
        """ids (B, T) -> logits of the next token (B, T, V), or (B, 1, V) with `last_only`."""
        keys, values = self.prefix()
        if mask is not None:
            mask = F.pad(mask, (keys.shape[2], 0), value=1)
        return self.model(ids, mask, _Fronts(keys, values), last_only=last_only)

    @torch.no_grad()
    def cache(self, n_rows: int) -> KVCache:
        """A cache that holds the prefix, for each of `n_rows` texts."""
        cache = KVCache(self.model.config.n_layers)
        keys, values = (part.detach() for part in self.prefix())
        for layer, k, v in zip(cache.layers, keys, values, strict=True):
            layer.extend(k.expand(n_rows, -1, -1, -1), v.expand(n_rows, -1, -1, -1))
        return cache

    def read_and_reorder(self, mask: Tensor | None = None) -> tuple[Callable, Callable]:
        """`Decoder.read_and_reorder`, after the prefix."""
        read, reorder = self.model.read_and_reorder(mask)

        def after_the_prefix(ids: Tensor, cache: tuple | None) -> tuple[Tensor, tuple]:
            if cache is None:
                steps, seen = self.cache(len(ids)), mask
                if seen is not None:
                    seen = F.pad(one_each(seen, len(ids), "masks"), (steps.length, 0), value=1)
                cache = steps, seen
            return read(ids, cache)

        return after_the_prefix, reorder
