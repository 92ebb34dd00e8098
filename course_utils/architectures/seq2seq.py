"""A recurrent encoder–decoder, with or without attention; g2p_en's weights. Notebooks 01, 03.

Shapes: B sequences, S source steps, T target steps, H hidden units, L layers, V target symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from course_utils.architectures.cells import State
from course_utils.architectures.layers import (
    check_ids,
    check_one_prompt,
    copy_weights,
    one_each,
)
from course_utils.architectures.recurrent import Recurrent, check_lengths

# ── encoder–decoder ───────────────────────────────────────────────────────────────────────────────


class RecurrentSeq2Seq(nn.Module):
    """One recurrent net reads the source, another writes the target, with or without attention.

    Without, all the decoder knows of the source is the encoder's last state (Sutskever, Vinyals &
    Le 2014; Cho et al. 2014). With, each output also sees a weighted sum of all the encoder's
    outputs (Luong, Pham & Manning 2015, equations 5–8 with the "general" score, without input
    feeding, so that training needs no loop beyond the recurrence itself).
    """

    def __init__(
        self,
        n_source: int,
        n_target: int,
        *,
        d_model: int = 256,
        d_hidden: int = 256,
        kind: str = "gru",
        n_layers: int = 1,
        bidirectional: bool = False,
        attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if bidirectional and d_hidden % 2:
            raise ValueError(f"d_hidden is {d_hidden}; two directions share it, so make it even")
        self.kind, self.directions = kind, 2 if bidirectional else 1
        self.source_embedding = nn.Embedding(n_source, d_model)
        self.target_embedding = nn.Embedding(n_target, d_model)
        each = d_hidden // self.directions
        self.encoder = Recurrent(
            kind, d_model, each, n_layers=n_layers, bidirectional=bidirectional
        )
        self.decoder = Recurrent(kind, d_model, d_hidden, n_layers=n_layers)
        self.score = nn.Linear(d_hidden, d_hidden, bias=False) if attention else None
        self.combine = nn.Linear(2 * d_hidden, d_hidden, bias=False) if attention else None
        self.out = nn.Linear(d_hidden, n_target)
        self.dropout = nn.Dropout(dropout)

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, State]:
        """Source ids (B, S) -> outputs (B, S, H), which of them are real (B, S), last state."""
        check_ids(source, self.source_embedding.num_embeddings, "source ids")
        embedded = self.dropout(self.source_embedding(source))
        lengths = check_lengths(lengths, source)
        outputs, state = self.encoder(embedded, lengths)
        real = torch.arange(source.shape[1]) < lengths.unsqueeze(1)  # (B, S)
        return outputs, real.to(source.device), self._for_decoder(state)

    def _for_decoder(self, state: State) -> State:
        """Both directions side by side: (L·2, B, H/2) -> (L, B, H)."""
        if self.directions == 1:
            return state
        parts = state if isinstance(state, tuple) else (state,)
        parts = [p.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2) for p in parts]
        return tuple(parts) if isinstance(state, tuple) else parts[0]

    def attend(self, h: Tensor, memory: Tensor, real: Tensor) -> Tensor:
        """Weights of each output h (B, T, H) over the memory (B, S, H) -> (B, T, S).

        score = hᵀ W m; positions that are not `real` get weight 0, and a source with none gets
        all zeros.
        """
        scores = self.score(h) @ memory.transpose(1, 2)  # (B, T, H) (B, H, S) -> (B, T, S)
        scores = scores.masked_fill(~real.unsqueeze(1), torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1) * real.unsqueeze(1)

    def decode(
        self, target: Tensor, memory: Tensor, real: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """Target ids so far (B, T) and the state before them -> logits (B, T, V), state after."""
        check_ids(target, self.target_embedding.num_embeddings, "target ids")
        h, state = self.decoder(self.dropout(self.target_embedding(target)), state=state)
        if self.score is not None:
            context = self.attend(h, memory, real) @ memory  # (B, T, S) (B, S, H) -> (B, T, H)
            h = torch.tanh(self.combine(torch.cat([context, h], dim=-1)))
        return self.out(self.dropout(h)), state

    def forward(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Source ids (B, S) with lengths (B,) and target ids (B, T) -> logits (B, T, V)."""
        return self.decode(target, *self.encode(source, lengths))[0]

    @torch.inference_mode()
    def read_and_reorder(
        self, source: Tensor, lengths: Tensor | None = None
    ) -> tuple[Callable, Callable]:
        """Two callables with which a decoding loop writes targets of source ids (B, S).

        `read(ids, state)` takes target ids (B, T) that follow those behind the state, None at
        first, and gives the logits (B, V) of the next one, and the state. `reorder(state, rows)`
        keeps these rows. One source serves any number of targets; several have one target each.
        """
        memory, real, first = self.encode(source, lengths)

        def read(ids: Tensor, state: State | None) -> tuple[Tensor, State]:
            n = len(ids)
            seen = one_each(memory, n, "sources"), one_each(real, n, "sources")
            if state is None:
                state = _rows_of(first, torch.arange(n).clamp(max=len(source) - 1))
            with torch.inference_mode():
                logits, state = self.decode(ids, *seen, state)
            return logits[:, -1].clone(), state  # a clone: the caller may be out of that mode

        def reorder(state: State, rows: Tensor) -> State:
            check_one_prompt(source)
            return _rows_of(state, rows)

        return read, reorder


def _rows_of(state: State, rows: Tensor) -> State:
    """These sequences of a state (L, B, H), in this order."""
    if isinstance(state, tuple):
        return tuple(part[:, rows] for part in state)
    return state[:, rows]


def load_g2p_weights(model: RecurrentSeq2Seq, arrays: Mapping[str, Tensor]) -> None:
    """Put g2p_en's weights (29 graphemes, 74 phonemes, GRU 256) into a model without attention.

    Raises ValueError when a name is missing, left over or of another size.
    """
    names = {
        "source_embedding.weight": "enc_emb",
        "target_embedding.weight": "dec_emb",
        "out.weight": "fc_w",
        "out.bias": "fc_b",
    }
    for ours, theirs in (("encoder", "enc"), ("decoder", "dec")):
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            short = part.replace("weight", "w").replace("bias", "b")
            names[f"{ours}.{part}_l0"] = f"{theirs}_{short}"
    copy_weights(model, arrays, names, "g2p_en")
