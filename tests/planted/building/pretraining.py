"""Plausible wrong versions of course_utils.building.pretraining."""

from __future__ import annotations

import math

import torch
from planting import Bug, originals

right = originals("building.pretraining")


def warmup_cosine_whole_turn(step, steps, warmup, floor=0.1):
    right["warmup_cosine"](step, steps, warmup)
    if step < warmup:
        return step / warmup
    done = min((step - warmup) / (steps - warmup), 1)
    return floor + (1 - floor) * (1 + math.cos(2 * math.pi * done)) / 2


def warmup_cosine_over_all_steps(step, steps, warmup, floor=0.1):
    share = right["warmup_cosine"](step, steps, warmup, floor)
    return share if step < warmup else right["warmup_cosine"](step, steps, 0, floor)


def warmup_cosine_without_floor(step, steps, warmup, floor=0.1):
    return right["warmup_cosine"](step, steps, warmup, 0)


def decay_groups_all(model, weight_decay):
    first, second = right["decay_groups"](model, weight_decay)
    return [first | {"params": first["params"] + second["params"]}, second | {"params": []}]


def batch_at_in_order(rows, size, seed, step):
    right["batch_at"](rows, size, seed, step)
    at = step % (len(rows) // size)
    return rows[at * size : (at + 1) * size]


def batch_at_one_order(rows, size, seed, step):
    """The same order in every pass."""
    return right["batch_at"](rows, size, seed, step % (len(rows) // size))


def batch_at_with_repeats(rows, size, seed, step):
    right["batch_at"](rows, size, seed, step)
    draw = torch.Generator().manual_seed(seed + step)
    return rows[torch.randint(len(rows), (size,), generator=draw)]


class ForgetsTheStep(right["Pretraining"]):
    """Reads the first batches again."""

    def resume(self, path):
        super().resume(path)
        self.done = 0

    def train(self, steps=None, **options):
        return super().train(5 if steps is None and self.steps == 8 else steps, **options)


class ForgetsAdam(right["Pretraining"]):
    def resume(self, path):
        moments = self.optimizer.state_dict()
        super().resume(path)
        self.optimizer.load_state_dict(moments)


class Unclipped(right["Pretraining"]):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.max_norm = 1e9


def nats_per_token_by_batch(model, rows, batch_size=16):
    """The mean of batches, the last of which is smaller."""
    right["nats_per_token"](model, rows)
    losses = [right["next_token_loss"](model(b), b).item() for b in rows.split(batch_size)]
    return sum(losses) / len(losses)


def bits_per_byte_in_nats(nats, n_tokens, n_bytes):
    return right["bits_per_byte"](nats, n_tokens, n_bytes) * math.log(2)


def bits_per_token(nats, n_tokens, n_bytes):
    right["bits_per_byte"](nats, n_tokens, n_bytes)
    return nats / math.log(2)


def nats_of_rows_in_training(model, rows, batch_size=16):
    """Dropout stays on."""
    right["nats_of_rows"](model, rows[:1])
    return [
        nats
        for batch in rows.split(batch_size)
        for nats in (-right["token_logprobs"](model(batch), batch).mean(dim=1)).tolist()
    ]


def nats_of_rows_of_a_batch(model, rows, batch_size=16):
    """Every row is given its batch's mean."""
    found = right["nats_of_rows"](model, rows, batch_size)
    chunks = [found[i : i + batch_size] for i in range(0, len(found), batch_size)]
    return [sum(chunk) / len(chunk) for chunk in chunks for _ in chunk]


def bytes_of_all_tokens(tokenizer, rows):
    return len(tokenizer.decode_bytes(rows.flatten().tolist(), specials=False))


def bytes_of_with_specials(tokenizer, rows):
    return len(tokenizer.decode_bytes(rows[:, 1:].flatten().tolist()))


def bytes_of_characters(tokenizer, rows):
    return len(tokenizer.decode(rows[:, 1:].flatten().tolist(), specials=False))


def bits_of_all_tokens(nats, tokenizer, rows):
    right["bits_of"](nats, tokenizer, rows)
    mean = sum(nats) / len(nats)
    return right["bits_per_byte"](mean, rows.numel(), right["bytes_of"](tokenizer, rows))


BUGS = [
    Bug("warmup_cosine", "turns back up", warmup_cosine_whole_turn),
    Bug("warmup_cosine", "falls during the warm-up", warmup_cosine_over_all_steps),
    Bug("warmup_cosine", "has no floor", warmup_cosine_without_floor),
    Bug("decay_groups", "shrinks norms", decay_groups_all),
    Bug("batch_at", "does not shuffle", batch_at_in_order),
    Bug("batch_at", "shuffles once", batch_at_one_order),
    Bug("batch_at", "draws with repeats", batch_at_with_repeats),
    Bug("Pretraining", "forgets the step", ForgetsTheStep, tests="bit_exact"),
    Bug("Pretraining", "forgets Adam's moments", ForgetsAdam, tests="bit_exact"),
    Bug("Pretraining", "does not clip", Unclipped, tests="plain_loop"),
    Bug("nats_per_token", "takes the mean of batches", nats_per_token_by_batch),
    Bug("nats_of_rows", "leaves dropout on", nats_of_rows_in_training),
    Bug("nats_of_rows", "gives each row its batch's mean", nats_of_rows_of_a_batch),
    Bug("bytes_of", "counts each row's first token", bytes_of_all_tokens),
    Bug("bytes_of", "counts the end sign's letters", bytes_of_with_specials),
    Bug("bytes_of", "counts characters", bytes_of_characters),
    Bug("bits_of", "counts tokens that nobody guessed", bits_of_all_tokens),
    Bug("bits_per_byte", "is in nats", bits_per_byte_in_nats),
    Bug("bits_per_byte", "is per token", bits_per_token),
]
