"""Plausible wrong versions of course_utils.finetuning.light."""

from __future__ import annotations

from planting import Bug, originals

right = originals("finetuning.light")


class ScaledAtTheOtherEnd(right["ScaledLinear"]):
    """Only square layers could do it; on others the first numbers are used."""

    def forward(self, x):
        if self.before:
            return self.base(x) * self.vector[:1]
        return self.base(x * self.vector[:1])


class ScaledBeforeTheBias(right["ScaledLinear"]):
    def forward(self, x):
        if self.before or self.base.bias is None:
            return super().forward(x)
        return (self.base(x) - self.base.bias) * self.vector + self.base.bias


class ScaledFromZero(right["ScaledLinear"]):
    def __init__(self, base, *, before):
        super().__init__(base, before=before)
        self.vector.data.zero_()


def biases_and_weights(model, pattern=".*"):
    right["train_biases"](model, pattern)
    model.requires_grad_(True)
    return sum(p.numel() for p in model.parameters())


def all_biases(model, pattern=".*"):
    right["train_biases"](model, pattern)
    return right["train_biases"](model)


def ia3_that_leaves_the_rest_free(model, outputs, inputs):
    count = right["inject_ia3"](model, outputs, inputs)
    model.requires_grad_(True)
    return count


def ia3_on_outputs_alone(model, outputs, inputs):
    return right["inject_ia3"](model, f"({outputs})|({inputs})", "none")


BUGS = [
    Bug("ScaledLinear", "scales the other end", ScaledAtTheOtherEnd, "scaledlinear or ia3"),
    Bug("ScaledLinear", "does not scale the bias", ScaledBeforeTheBias, "scaledlinear or ia3"),
    Bug("ScaledLinear", "starts at 0", ScaledFromZero, "scaledlinear or ia3"),
    Bug("train_biases", "frees the weights too", biases_and_weights),
    Bug("train_biases", "does not look at the pattern", all_biases),
    Bug("inject_ia3", "freezes nothing", ia3_that_leaves_the_rest_free),
    Bug("inject_ia3", "scales outputs where inputs are meant", ia3_on_outputs_alone),
]
