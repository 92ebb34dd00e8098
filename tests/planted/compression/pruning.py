"""Plausible wrong versions of course_utils.compression.pruning."""

from __future__ import annotations

import torch
from planting import Bug, originals, refusing

right = originals("compression.pruning")


def signed_scores(weight):
    return weight.detach()


def wanda_by_squares(weight, norms):
    """‖x‖² for ‖x‖: the root is forgotten, as in a known library."""
    return weight.detach().abs() * norms.square()


def wanda_of_rows(weight, norms):
    return right["wanda_scores"](weight, norms).mean(dim=1, keepdim=True) * weight.abs()


def wanda_with_signs(weight, norms):
    return weight.detach() * norms


def largest_go(scores, sparsity):
    return right["row_mask"](-scores, sparsity)


def rows_by_a_threshold(scores, sparsity):
    """≤ a threshold: takes one too many, and all that are equal."""
    n = round(sparsity * scores.shape[-1])
    ordered = scores.sort(dim=-1).values
    return scores > ordered[..., min(n, scores.shape[-1] - 1)].unsqueeze(-1)


def mask_inverted(scores, sparsity):
    return ~right["row_mask"](scores, sparsity)


def columns_compared(scores, sparsity):
    return right["row_mask"](scores.T.contiguous(), sparsity).T


def layer_by_rows(scores, sparsity):
    return right["row_mask"](scores, sparsity)


def global_layer_by_layer(scores, sparsity):
    return {name: right["layer_mask"](each, sparsity) for name, each in scores.items()}


def global_by_means(scores, sparsity):
    """Layers made equal first: another question."""
    return right["global_masks"]({n: s / s.mean() for n, s in scores.items()}, sparsity)


def n_of_m_prunes_n(scores, n=2, m=4):
    """n go, instead of n staying: the same at 2:4 alone."""
    groups = scores.reshape(-1, m)
    return right["row_mask"](groups, n / m).reshape(scores.shape)


def n_of_m_down_the_columns(scores, n=2, m=4):
    groups = scores.T.reshape(-1, m) if scores.shape[0] % m == 0 else scores.flatten().view(m, -1).T
    return right["row_mask"](groups, (m - n) / m).reshape(scores.shape)


def masks_that_keep_what_goes(model, masks):
    right["apply_masks"](model, {name: ~mask for name, mask in masks.items()})


def sparsity_with_biases(model):
    parameters = list(model.parameters())
    return sum(int((p == 0).sum()) for p in parameters) / sum(p.numel() for p in parameters)


class KeeperOfGradients(right["MaskKeeper"]):
    """Only the gradients: momentum and decay still move what was pruned."""

    def _set_to_zero(self):
        pass


class KeeperOfWeights(right["MaskKeeper"]):
    """Only the weights: their gradients still count when gradients are clipped."""

    def keep(self, masks):
        super().keep(masks)
        self._forget_gradients()


class KeeperForEver(right["MaskKeeper"]):
    def release(self):
        pass


class KeeperOfOldMasks(right["MaskKeeper"]):
    """The gradients of the first mask stay 0."""

    def _forget_gradients(self):
        pass


def linear_schedule(step, final, start, end, initial=0.0):
    t = min(max((step - start) / (end - start), 0), 1)
    return initial + (final - initial) * t


def schedule_without_a_start(step, final, start, end, initial=0.0):
    return right["gradual_sparsity"](step, final, 0, end, initial)


def schedule_that_goes_on(step, final, start, end, initial=0.0):
    return final + (initial - final) * (1 - (step - start) / (end - start)) ** 3


def equal_steps(final, rounds):
    return [final * i / rounds for i in range(1, rounds + 1)]


def rewound_without_the_mask(model, initial, masks):
    model.load_state_dict(initial)


def rewound_by_masks_alone(model, initial, masks):
    """The trained weights: no ticket."""
    right["apply_masks"](model, masks)


def shuffled_with_another_number(masks, seed=0, within="layer"):
    generator = torch.Generator().manual_seed(seed)
    share = {name: mask.float().mean() for name, mask in masks.items()}
    return {n: torch.rand(m.shape, generator=generator) < share[n] for n, m in masks.items()}


def shuffled_not_at_all(masks, seed=0, within="layer"):
    return dict(masks)


def shuffled_the_other_way(masks, seed=0, within="layer"):
    """The rows keep their numbers where columns should."""
    other = {"inputs": "outputs", "outputs": "inputs"}.get(within, within)
    return right["shuffled_masks"](masks, seed, other)


def shuffled_in_one_order(masks, seed=0, within="layer"):
    """One order of rows for all columns: whole rows move, and stay as they are."""
    if within != "inputs":
        return right["shuffled_masks"](masks, seed, within)
    generator = torch.Generator().manual_seed(seed)
    return {n: m[torch.randperm(len(m), generator=generator)] for n, m in masks.items()}


def zeros_with_biases(model):
    return sum(int((p == 0).sum()) for p in model.parameters())


def zeros_and_small_ones(model):
    """Below a limit, not exactly 0."""
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    return sum(int((w.abs() < 0.1).sum()) for w in weights)


def linear_scores_by_magnitude(model, moments=None, skip=()):
    scores = right["linear_scores"](model, moments, skip)
    plain = right["linear_scores"](model, None, skip)
    return {name: plain[name] for name in scores}


def bug(function, description, wrong, tests=""):
    return Bug(function, description, refusing(right[function], wrong), tests)


BUGS = [
    Bug("magnitude_scores", "keep the sign", signed_scores, "torchs or sparsity_of"),
    bug("wanda_scores", "take the square of the norm", wanda_by_squares, "wanda"),
    bug("wanda_scores", "average over inputs", wanda_of_rows, "wanda"),
    bug("wanda_scores", "keep the sign", wanda_with_signs, "wanda"),
    bug("row_mask", "removes the largest", largest_go, "by_hand or exact"),
    bug("row_mask", "removes one too many", rows_by_a_threshold, "by_hand or equal"),
    bug("row_mask", "is True where weights go", mask_inverted, "by_hand"),
    bug("row_mask", "compares columns", columns_compared, "by_hand"),
    bug("layer_mask", "compares rows", layer_by_rows, "by_hand or torchs"),
    bug("global_masks", "compares layers alone", global_layer_by_layer),
    bug("global_masks", "makes layers equal", global_by_means),
    bug("n_of_m_mask", "removes n", n_of_m_prunes_n, "by_hand or keeps_n"),
    bug("n_of_m_mask", "goes down the columns", n_of_m_down_the_columns, "by_hand or llm"),
    Bug("apply_masks", "keeps what should go", masks_that_keep_what_goes),
    Bug("sparsity_of", "counts biases", sparsity_with_biases),
    Bug("MaskKeeper", "holds gradients only", KeeperOfGradients, "momentum"),
    Bug("MaskKeeper", "holds weights only", KeeperOfWeights, "momentum"),
    Bug("MaskKeeper", "is never released", KeeperForEver, "momentum"),
    Bug("MaskKeeper", "remembers old masks", KeeperOfOldMasks, "new_masks"),
    bug("gradual_sparsity", "is linear", linear_schedule),
    bug("gradual_sparsity", "starts at once", schedule_without_a_start),
    bug("gradual_sparsity", "goes on after the end", schedule_that_goes_on),
    bug("iterative_sparsities", "take equal steps", equal_steps),
    Bug("rewind", "forgets the mask", rewound_without_the_mask),
    Bug("rewind", "keeps the trained weights", rewound_by_masks_alone),
    Bug("shuffled_masks", "keep about as many", shuffled_with_another_number),
    Bug("shuffled_masks", "are the masks", shuffled_not_at_all),
    bug("shuffled_masks", "take rows for columns", shuffled_the_other_way),
    bug("shuffled_masks", "move whole rows", shuffled_in_one_order),
    Bug("zeros_of", "counts biases", zeros_with_biases),
    Bug("zeros_of", "counts small ones", zeros_and_small_ones),
    Bug("linear_scores", "forget the inputs", linear_scores_by_magnitude),
]
