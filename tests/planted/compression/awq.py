"""Plausible wrong versions of course_utils.compression.awq."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("compression.awq")


def salient_are_the_smallest(sizes, share=0.01):
    return right["salient_columns"](-sizes, share)


def salient_as_they_come(sizes, share=0.01):
    return sizes.topk(right["_count"](len(sizes), share)).indices


def salient_rounded_down(sizes, share=0.01):
    """1 % of 64 is none."""
    return sizes.topk(int(share * len(sizes))).indices.sort().values


def random_by_the_global_seed(d_in, share=0.01, seed=0):
    return torch.randperm(d_in)[: right["_count"](d_in, share)].sort().values


def random_with_repeats(d_in, share=0.01, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(d_in, (right["_count"](d_in, share),), generator=generator).sort().values


def rows_kept(weight, columns, quantize):
    """The outputs' rows: saliency is of inputs."""
    rounded = quantize(weight).clone()
    rows = columns[columns < len(weight)]
    rounded[rows] = weight[rows]
    return rounded


def kept_in_place(weight, columns, quantize):
    rounded = quantize(weight)
    rounded[:, columns] = weight[:, columns] + 0
    rounded.mul_(1.0)
    return rounded


def scaled_and_not_back(weight, scales, quantize):
    return quantize(weight * scales)


def scaled_down_first(weight, scales, quantize):
    return quantize(weight / scales) * scales


def scaled_by_rows(weight, scales, quantize):
    rows = scales[: len(weight)].unsqueeze(1)
    return quantize(weight * rows) / rows


def sizes_not_normalised(sizes, ratio):
    return sizes.pow(ratio).clamp(min=1e-4)


def sizes_over_the_mean(sizes, ratio):
    scales = sizes.pow(ratio).clamp(min=1e-4)
    return scales / scales.mean()


def clamped_before_the_power(sizes, ratio):
    scales = sizes.clamp(min=1e-4).pow(ratio)
    return scales / (scales.max() * scales.min()).sqrt()


def searched_by_the_weights_error(weight, hessian, sizes, quantize, steps=20):
    return right["search_scales"](weight, torch.eye(len(hessian)), sizes, quantize, steps)


def searched_for_the_worst(weight, hessian, sizes, quantize, steps=20):
    found = right["search_scales"](weight, hessian, sizes, quantize, steps)
    ratio = max(found.errors, key=found.errors.get)
    return found._replace(ratio=ratio, scales=right["scales_by_size"](sizes, ratio))


def searched_without_plain_rounding(weight, hessian, sizes, quantize, steps=20):
    found = right["search_scales"](weight, hessian, sizes, quantize, steps + 1)
    errors = {ratio: error for ratio, error in found.errors.items() if ratio} or found.errors
    ratio = min(errors, key=errors.get)
    return right["Search"](right["scales_by_size"](sizes, ratio), ratio, errors)


def folded_without_the_bias(before, layers, scales):
    bias = None if getattr(before, "bias", None) is None else before.bias.detach().clone()
    right["fold_scales"](before, layers, scales)
    if bias is not None:
        before.bias.data = bias


def folded_into_the_columns(before, layers, scales):
    """Divides what the layer before reads, not what it gives."""
    weight = before.weight.detach().clone()
    right["fold_scales"](before, layers, scales)
    if weight.ndim == 2:
        before.weight.data = weight / scales[: weight.shape[1]]


def folded_into_the_first(before, layers, scales):
    right["fold_scales"](before, layers[:1], scales)


def linears_with_the_scales_left_in(model, moments, quantize, steps=20):
    found = right["awq_linears"](model, moments, quantize, steps)
    for name, search in found.items():
        model.get_submodule(name).weight.data *= search.scales
    return found


BUGS = [
    Bug("salient_columns", "takes the smallest", salient_are_the_smallest),
    Bug("salient_columns", "orders them by size", salient_as_they_come),
    Bug("salient_columns", "takes none of a few", salient_rounded_down),
    Bug("random_columns", "forgets its seed", random_by_the_global_seed),
    Bug("random_columns", "draws some twice", random_with_repeats),
    Bug("keep_columns", "keeps rows", rows_kept),
    Bug("keep_columns", "writes into the weight", kept_in_place),
    Bug("scaled_rounding", "does not scale back", scaled_and_not_back),
    Bug("scaled_rounding", "scales down first", scaled_down_first),
    Bug("scaled_rounding", "scales rows", scaled_by_rows),
    Bug("scales_by_size", "does not normalise", sizes_not_normalised, "by_hand"),
    Bug("scales_by_size", "divides by the mean", sizes_over_the_mean, "by_hand"),
    Bug("scales_by_size", "clamps first", clamped_before_the_power, "by_hand"),
    Bug("search_scales", "looks at the weight's error", searched_by_the_weights_error),
    Bug("search_scales", "takes the worst", searched_for_the_worst, "torchao or ratio"),
    Bug("search_scales", "leaves plain rounding out", searched_without_plain_rounding, "nothing"),
    Bug("fold_scales", "forgets the bias", folded_without_the_bias),
    Bug("fold_scales", "divides the columns", folded_into_the_columns),
    Bug("fold_scales", "changes one reader", folded_into_the_first),
    Bug("awq_linears", "leaves the scales in", linears_with_the_scales_left_in),
]
