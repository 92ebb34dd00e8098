"""Plausible wrong versions of course_utils.finetuning.prompt_tuning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planting import Bug, originals

from course_utils.architectures.kv_cache import KVCache

right = originals("finetuning.prompt_tuning")


class PromptBehindTheText(right["PromptTuned"]):
    def forward(self, ids, mask=None):
        n = len(self.vectors)
        return super().forward(ids, mask).roll(-n, dims=1)


class PromptWithoutItsMask(right["PromptTuned"]):
    """The mask is widened with zeros: no one may look at the prompt."""

    def forward(self, ids, mask=None):
        n = len(self.vectors)
        mask = torch.ones_like(ids) if mask is None else mask
        with self._instead_of_the_first(n):
            return self.model(F.pad(ids, (n, 0)), F.pad(mask, (n, 0)))


class PromptInAThawedModel(right["PromptTuned"]):
    def __init__(self, model, embedding, vectors):
        super().__init__(model, embedding, vectors)
        model.requires_grad_(True)


class PromptThatStays(right["PromptTuned"]):
    """The hook is never taken off, so that the model keeps the prompt."""

    def forward(self, ids, mask=None):
        n = len(self.vectors)
        if mask is not None:
            mask = F.pad(mask, (n, 0), value=1)
        self.never_left = self._instead_of_the_first(n)
        self.never_left.__enter__()
        return self.model(F.pad(ids, (n, 0)), mask)


class PromptPredictsTheNext(right["PromptTuned"]):
    """Predictions one step late: the logits at a token, not of it."""

    def predictions(self, ids, mask=None):
        return self(ids, mask)[:, len(self.vectors) :]


class PromptAdded(right["PromptTuned"]):
    """Added to what the table says of id 0, instead of in its place."""

    def forward(self, ids, mask=None):
        table = self._embedding[0].weight
        kept = self.vectors.data
        self.vectors.data = kept + table[0]
        out = super().forward(ids, mask)
        self.vectors.data = kept
        return out


def split_values_first(flat, n_layers, n_kv_heads):
    keys, values = right["split_prefix"](flat, n_layers, n_kv_heads)
    return values, keys


def split_by_halves(flat, n_layers, n_kv_heads):
    """All keys, then all values."""
    right["split_prefix"](flat, n_layers, n_kv_heads)
    parts = flat.view(len(flat), 2, n_layers, n_kv_heads, -1)
    keys, values = parts.permute(1, 2, 3, 0, 4)
    return keys, values


class FrontBehind(right["_Front"]):
    def extend(self, k, v):
        front = (len(k), -1, -1, -1)
        return (
            torch.cat([k, self.keys.expand(*front)], dim=2),
            torch.cat([v, self.values.expand(*front)], dim=2),
        )


class FrontDetached(right["_Front"]):
    def extend(self, k, v):
        keys, values = super().extend(k, v)
        n = self.keys.shape[1]
        return (
            torch.cat([keys[:, :, :n].detach(), k], dim=2),
            torch.cat([values[:, :, :n].detach(), v], dim=2),
        )


class FrontsWithoutLength(right["_Fronts"]):
    """The text's positions start at 0, as if nothing stood before it."""

    def __init__(self, keys, values):
        super().__init__(keys, values)
        self.length = 0


class PrefixWithoutItsCache(right["PrefixTuned"]):
    def cache(self, n_rows):
        return KVCache(self.model.config.n_layers)


class ProjectedByReLU(right["ProjectedPrefix"]):
    def forward(self):
        flat = self.down(torch.relu(self.up(self.vectors)))
        return right["split_prefix"](flat, self.n_layers, self.n_kv_heads)


def prompt_of_the_text_instead(tuned):
    """Reads ids 0, and not the vectors."""
    n = len(tuned.vectors)
    return right["prefix_of"](tuned.model, torch.zeros(1, n, dtype=torch.long))


def sampled_from_the_start(table, n, generator=None):
    right["check_positive"](n=n)
    return table.detach()[torch.arange(n) % 2].clone()


def sampled_around_the_mean(table, n, generator=None):
    right["check_positive"](n=n)
    return table.mean(0) + table.std(0) * torch.randn(n, table.shape[1])


def text_filled_with_zeros(table, ids, n):
    right["text_prompt"](table, ids, n)
    start = table.detach()[list(ids)[:n]]
    return F.pad(start, (0, 0, 0, n - len(start)))


def label_by_first_token(table, labels, n, generator=None):
    right["label_prompt"](table, labels, n)
    return right["label_prompt"](table, [ids[:1] for ids in labels], n)


def nearest_by_product(vectors, table):
    best = (F.normalize(vectors.detach(), dim=1) @ table.detach().T).max(dim=1)
    return best.indices, best.values


def random_by_uniform(n, d_model, std=1.0, generator=None):
    right["check_positive"](n=n, d_model=d_model)
    return std * (torch.rand(n, d_model, generator=generator) - 0.5)


def all_behind_the_first(prefixes):
    cache = right["side_by_side"](prefixes)
    return right["side_by_side"]([prefixes[0]] * len(prefixes)) if len(prefixes) > 1 else cache


BUGS = [
    Bug("side_by_side", "gives all the first prompt", all_behind_the_first, "side_by_side"),
    Bug("PromptTuned", "stands behind the text", PromptBehindTheText, "prompt_tuned"),
    Bug("PromptTuned", "is masked out", PromptWithoutItsMask, "prompt_tuned"),
    Bug("PromptTuned", "lets the model learn", PromptInAThawedModel, "prompt_tuned_is_pefts"),
    Bug("PromptTuned", "stays in the model", PromptThatStays, "leaves_the_model"),
    Bug("PromptTuned", "predicts a step late", PromptPredictsTheNext, "predictions"),
    Bug("PromptTuned", "adds to a word", PromptAdded, "prompt_tuned"),
    Bug("split_prefix", "takes values first", split_values_first, "split_prefix or pefts"),
    Bug("split_prefix", "takes halves", split_by_halves, "split_prefix or pefts"),
    Bug("_Front", "stands behind", FrontBehind, "prefix"),
    Bug("_Front", "lets no gradient through", FrontDetached, "prefix_tuned_is_pefts"),
    Bug("_Fronts", "moves no position", FrontsWithoutLength, "prefix"),
    Bug("PrefixTuned", "leaves the cache empty", PrefixWithoutItsCache, "with_a_cache"),
    Bug("ProjectedPrefix", "uses ReLU", ProjectedByReLU, "projected"),
    Bug("prompt_as_prefix", "reads ids", prompt_of_the_text_instead, "prompt_as_prefix or soft"),
    Bug("sampled_prompt", "takes the first words", sampled_from_the_start),
    Bug("sampled_prompt", "draws near the words", sampled_around_the_mean),
    Bug("text_prompt", "fills with zeros", text_filled_with_zeros),
    Bug("label_prompt", "takes first tokens", label_by_first_token),
    Bug("nearest_words", "takes long words", nearest_by_product),
    Bug("random_prompt", "is uniform", random_by_uniform),
]
