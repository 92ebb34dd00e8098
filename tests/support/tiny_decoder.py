"""A decoder that has learnt a sentence by heart, and its byte-level tokenizer."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.objectives import next_token_loss

LINES = (
    "The quality of mercy is not strain'd, it droppeth as the gentle rain from heaven upon the "
    "place beneath: it is twice blest; it blesseth him that gives and him that takes.\n"
)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"), ("a", "n"), ("an", "d")]
END = "<|end|>"
TOKENS = [*ALPHABET, *("".join(pair) for pair in MERGES), END]


def tokenizer() -> Tokenizer:
    model = models.BPE({token: i for i, token in enumerate(TOKENS)}, MERGES)
    found = Tokenizer(model)
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([END])
    return found


def trained(steps: int = 100, **sizes: int | bool) -> Decoder:
    """Some 2 seconds on one thread; sizes in multiples of 256, which K-quants need."""
    torch.manual_seed(0)
    config = {"d_model": 256, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "d_ff": 256, **sizes}
    model = Decoder(DecoderConfig(len(TOKENS), max_positions=128, eps=1e-5, **config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    ids = torch.tensor(tokenizer().encode(LINES).ids)
    for _ in range(steps):
        start = torch.randint(0, len(ids) - 63, (4, 1))
        batch = ids[start + torch.arange(64)]
        loss = next_token_loss(model(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()
    return model.eval()
