"""The families as masks on one network: `Stacks`. Notebook 03.

All see one sequence, a source and then a target. How much of it is a prefix, whose tokens see one
another, makes the same blocks an encoder, a decoder or a prefix LM; two stacks of them make an
encoder–decoder. Shapes: B sequences, T tokens, P of them prefix, D = d_model, V = vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from course_utils.architectures.attention import padding_mask, prefix_mask
from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.layers import check_positive

Rotary = tuple[Tensor, Tensor]


class Stacks(nn.Module):
    """A decoder's blocks under a prefix mask, in one stack or in two.

    One stack: every token runs through all blocks. Two: the prefix runs through the first half,
    and the rest through the second half, in which it also looks at what the first half made of the
    prefix; cross-attention and attention to oneself share one softmax, so that the weights are as
    many, and of the same kind, as in one stack. Without `rotary` no token knows its place.
    """

    def __init__(self, config: DecoderConfig, *, two: bool = False, rotary: bool = True) -> None:
        super().__init__()
        check_positive(n_layers=config.n_layers)
        if two and config.n_layers % 2:
            raise ValueError(f"n_layers is {config.n_layers}; two stacks share an even number")
        self.two, self.knows_places = two, rotary
        self.net = Decoder(config)
        spread_weights(self.net)

    def forward(self, ids: Tensor, n_prefix: int, real: Tensor | None = None) -> Tensor:
        """ids (B, T), of which P = `n_prefix` are prefix -> logits (B, T, V).

        `real` (B, T) is True where a token is no padding.
        """
        real = torch.ones_like(ids, dtype=torch.bool) if real is None else real
        net, length = self.net, ids.shape[1]
        rotary = net.rotary(net.positions(ids, real, 0), length) if self.knows_places else None
        visible = prefix_mask(length, n_prefix, ids.device) & padding_mask(real)  # (B, 1, T, T)
        x = net.token_embedding(ids)
        if self.two:
            x = self._in_two(x, n_prefix, visible, rotary)
        else:
            for block in net.blocks:
                x = block(x, mask=visible, causal=False, rotary=rotary)
        return net.out(net.norm(x))

    def _in_two(self, x: Tensor, n_prefix: int, visible: Tensor, rotary: Rotary | None) -> Tensor:
        """x (B, T, D) -> (B, T, D): the prefix by the first half, the rest by the second."""
        half = len(self.net.blocks) // 2
        source, target = x[:, :n_prefix], x[:, n_prefix:]
        there = None if rotary is None else (rotary[0][:, :, :n_prefix], rotary[1][:, :, :n_prefix])
        for block in self.net.blocks[:half]:
            seen = visible[..., :n_prefix, :n_prefix]
            source = block(source, mask=seen, causal=False, rotary=there)
        for block in self.net.blocks[half:]:
            both = torch.cat([source, target], dim=1)  # the source is looked at, and stays
            target = block(both, mask=visible, causal=False, rotary=rotary)[:, n_prefix:]
        return torch.cat([source, target], dim=1)


def spread_weights(net: Decoder) -> None:
    """Deviation 1/√(inputs), and less where blocks add up, so that narrow nets learn soon too.

    GPT-2's 0.02 suits its width of 768 and more: at width 64 it leaves scores near 0 for long.
    """
    config = net.config
    nn.init.normal_(net.token_embedding.weight, std=config.d_model**-0.5)
    for block in net.blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        for last in (block.attention.out, block.feed_forward.down):
            last.weight.data /= math.sqrt(2 * config.n_layers)


def reach(embedding: nn.Embedding, run: Callable[[], Tensor]) -> list[Tensor]:
    """How far each output depends on each token: |∂(first number of output i)/∂(vector j)|.

    `run()` gives outputs (1, T_out, D) of sequences that it looks up in `embedding`; of each of
    these comes a table (T_out, T_in), in their order.
    """
    seen: list[Tensor] = []
    hook = embedding.register_forward_hook(lambda *call: seen.append(call[-1]))
    try:
        outputs = run()[0]
    finally:
        hook.remove()
    rows = [torch.autograd.grad(output[0], seen, retain_graph=True) for output in outputs]
    return [torch.stack([row[k][0].norm(dim=-1) for row in rows]) for k in range(len(seen))]
