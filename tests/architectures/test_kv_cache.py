"""The cache of keys and values, by hand."""

from __future__ import annotations

import pytest
import torch

from course_utils.architectures.kv_cache import KVCache, LayerCache


def test_cache_returns_all_steps():
    cache = LayerCache()
    steps = [torch.randn(2, 3, n, 4) for n in (3, 1, 1, 4, 1)]
    for i, step in enumerate(steps, start=1):
        keys, values = cache.extend(step, -step)
        assert torch.equal(keys, torch.cat(steps[:i], dim=2))
        assert torch.equal(values, -keys)
    assert cache.length == 10


def test_cache_copies_seldom():
    """Buffers double: 100 single steps move them 8 times, not 100."""
    cache, moves, last = LayerCache(), 0, None
    for _ in range(100):
        keys, _ = cache.extend(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        moves += keys.data_ptr() != last
        last = keys.data_ptr()
    assert moves <= 8


def test_cache_bookkeeping():
    cache = KVCache(3)
    assert (cache.length, cache.nbytes()) == (0, 0)
    for layer in cache.layers:
        layer.extend(torch.ones(2, 1, 5, 4), torch.ones(2, 1, 5, 4))
    assert cache.nbytes() == 2 * 3 * 2 * 1 * 5 * 4 * 4  # k and v, layers, B, G, T, D, fp32
    cache.crop(3)
    assert cache.length == 3
    new = torch.full((2, 1, 1, 4), 7.0)
    keys, _ = cache.layers[0].extend(new, new)
    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 7]
    cache.layers[0].keys[1] = 9
    cache.select(torch.tensor([1, 1, 0]))
    assert cache.layers[0].keys[:, 0, 0, 0].tolist() == [9, 9, 1]
    with pytest.raises(ValueError, match="length is 9; the cache holds 4 steps"):
        cache.crop(9)
    with pytest.raises(ValueError, match="n_layers is 0"):
        KVCache(0)


@pytest.mark.parametrize("shape", [(1, 3, 4), (5, 3, 4), (2, 1, 4), (2, 3, 6)])
def test_another_batch_starts_an_empty_cache_anew(shape):
    """After crop(0) nothing of the old batch is left that a new one has to fit, or could see."""
    cache, (batch, heads, size) = LayerCache(), shape
    old = torch.ones(2, 3, 5, 4)
    cache.extend(old, old)
    new = torch.randn(batch, heads, 2, size)
    with pytest.raises(ValueError, match=r"this cache holds 5 steps of \(2, 3, \d+, 4\)"):
        cache.extend(new, new)
    assert cache.length == 5
    cache.length = 0
    keys, values = cache.extend(new, -new)
    assert torch.equal(keys, new)
    assert torch.equal(values, -new)


def test_a_cropped_model_cache_reads_another_batch():
    cache = KVCache(1)
    cache.layers[0].extend(torch.ones(2, 1, 5, 4), torch.ones(2, 1, 5, 4))
    cache.crop(0)
    keys, _ = cache.layers[0].extend(torch.zeros(3, 1, 1, 4), torch.zeros(3, 1, 1, 4))
    assert (keys.shape, cache.length) == ((3, 1, 1, 4), 1)
    with pytest.raises(ValueError, match=r"are torch\.float64; this cache holds 1 steps"):
        cache.layers[0].extend(*2 * [torch.zeros(3, 1, 1, 4, dtype=torch.double)])


def test_cache_takes_no_gradients():
    k = torch.zeros(1, 1, 1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"torch\.no_grad"):
        LayerCache().extend(k, k)
