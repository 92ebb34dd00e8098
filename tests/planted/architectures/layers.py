"""Plausible wrong versions of course_utils.architectures.layers."""

from __future__ import annotations

from planting import Bug, originals

right = originals("architectures.layers")


def check_ids_one_too_many(ids, n_symbols, name="ids"):
    return right["check_ids"](ids, n_symbols + 1, name)


def copy_weights_what_fits(model, source, names, origin):
    """Skips whatever has no partner, as strict=False does."""
    for name, parameter in model.named_parameters():
        found = source.get(names.get(name, ""))
        if found is not None and found.shape == parameter.shape:
            parameter.data.copy_(found)


BUGS = [
    Bug("check_ids", "allows one id too many", check_ids_one_too_many, tests="ids"),
    Bug("copy_weights", "skips what does not fit", copy_weights_what_fits, tests="weights"),
]
