"""What a decoder keeps of the tokens it has read: keys and values. Notebook 02.

Shapes: B sequences, G key–value heads, T steps, D numbers per head.
"""

from __future__ import annotations

from torch import Tensor

from course_utils.architectures.layers import check_positive

# ── the cache ─────────────────────────────────────────────────────────────────────────────────────


class LayerCache:
    """Keys and values (B, G, T, D) of one layer, in buffers that grow by doubling.

    Appending one step then copies that step alone; joining tensors would copy all of them.

    >>> import torch
    >>> cache = LayerCache()
    >>> for step in (1.0, 2.0, 3.0):
    ...     keys, _ = cache.extend(torch.full((1, 1, 1, 1), step), torch.zeros(1, 1, 1, 1))
    >>> keys.flatten(), cache.length
    (tensor([1., 2., 3.]), 3)
    """

    def __init__(self) -> None:
        self.keys = self.values = None
        self.length = 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new steps (B, G, T, D) and return all, as views of the buffers."""
        if k.requires_grad:
            raise RuntimeError("a cache is written in place; use it inside torch.no_grad()")
        self._check(k)
        start, self.length = self.length, self.length + k.shape[2]
        if self.keys is None or self.length > self.keys.shape[2]:
            room = max(self.length, 2 * start)
            self.keys, self.values = (
                self._grown(self.keys, k, room),
                self._grown(self.values, v, room),
            )
        self.keys.narrow(2, start, k.shape[2]).copy_(k)
        self.values.narrow(2, start, v.shape[2]).copy_(v)
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def _check(self, k: Tensor) -> None:
        """Steps of another batch, or of other heads, start an empty cache anew; others refuse."""
        if self.keys is None or _without_steps(k) == _without_steps(self.keys):
            return
        if self.length:
            raise ValueError(
                f"the steps have shape {tuple(k.shape)} and are {k.dtype}; this cache holds "
                f"{self.length} steps of {tuple(self.keys.shape)}, {self.keys.dtype}: use a new "
                "cache, or select() its rows"
            )
        self.keys = self.values = None

    @staticmethod
    def _grown(old: Tensor | None, new: Tensor, room: int) -> Tensor:
        buffer = new.new_empty(*new.shape[:2], room, new.shape[3])
        if old is not None:
            buffer[:, :, : old.shape[2]] = old
        return buffer


def _without_steps(k: Tensor) -> tuple:
    """What all keys of one cache have in common: B, G, D, the type and the device."""
    return k.shape[0], k.shape[1], k.shape[3], k.dtype, k.device


class KVCache:
    """What a decoder has computed of the tokens so far: one `LayerCache` a layer.

    Only for inference: the buffers are written in place, so no gradient passes through them.
    """

    def __init__(self, n_layers: int) -> None:
        check_positive(n_layers=n_layers)
        self.layers = [LayerCache() for _ in range(n_layers)]

    @property
    def length(self) -> int:
        """Steps stored."""
        return self.layers[0].length

    def nbytes(self) -> int:
        """Bytes of the stored steps: 2 · layers · B · G · T · D · bytes per number.

        >>> import torch
        >>> cache = KVCache(n_layers=1)
        >>> _ = cache.layers[0].extend(torch.zeros(1, 3, 10, 64), torch.zeros(1, 3, 10, 64))
        >>> cache.nbytes()  # 2 · 1 · 1 · 3 · 10 · 64 · 4
        15360
        """
        return sum(
            tensor[:, :, : layer.length].numel() * tensor.element_size()
            for layer in self.layers
            if layer.keys is not None
            for tensor in (layer.keys, layer.values)
        )

    def crop(self, length: int) -> None:
        """Forget everything after the first `length` steps."""
        if not 0 <= length <= self.length:
            raise ValueError(f"length is {length}; the cache holds {self.length} steps")
        for layer in self.layers:
            layer.length = length

    def select(self, rows: Tensor) -> None:
        """Keep these sequences, in this order, repeats allowed: what beam search needs."""
        for layer in self.layers:
            if layer.keys is not None:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
