"""Plausible wrong versions of course_utils.compression.distillation, the taught ones among them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from planting import Bug, originals, refusing

right = originals("compression.distillation")


def targets_times_the_temperature(logits, temperature):
    return right["soft_targets"](logits, 1 / temperature if temperature else 0)


def targets_of_the_first(logits, temperature):
    """A tie is given to the first."""
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    return right["soft_targets"](logits, temperature)


def loss_of(log_p, log_q, temperature, mask, factor=1.0):
    return factor * right["mean_of"](right["kl"](log_p, log_q), mask)


def teacher_on_both_sides(student, teacher, temperature=1.0, mask=None, direction="forward"):
    """Nothing is distilled, and the loss looks perfect."""
    loss = right["distillation_loss"](teacher, teacher, temperature, mask, direction)
    return loss + 0 * student.nan_to_num(0, 0, 0).sum()


def averaged_over_the_vocabulary(student, teacher, temperature=1.0, mask=None, direction="forward"):
    """reduction="mean" for "batchmean": V times too small."""
    loss = right["distillation_loss"](student, teacher, temperature, mask, direction)
    return loss / student.shape[-1]


def without_the_square(student, teacher, temperature=1.0, mask=None, direction="forward"):
    loss = right["distillation_loss"](student, teacher, temperature, mask, direction)
    return loss / temperature**2


def with_the_temperature_once(student, teacher, temperature=1.0, mask=None, direction="forward"):
    loss = right["distillation_loss"](student, teacher, temperature, mask, direction)
    return loss / temperature


def softened_teacher_alone(student, teacher, temperature=1.0, mask=None, direction="forward"):
    """The student's side is left at T = 1."""
    student = student * temperature
    return right["distillation_loss"](student, teacher, temperature, mask, direction)


def sides_swapped(student, teacher, temperature=1.0, mask=None, direction="forward"):
    other = {"forward": "reverse", "reverse": "forward"}[direction]
    return right["distillation_loss"](student, teacher, temperature, mask, other)


def teacher_learns_too(student, teacher, temperature=1.0, mask=None, direction="forward"):
    loss = right["distillation_loss"](student, teacher, temperature, mask, direction)
    return loss + 0 * teacher.sum()


def probabilities_for_logarithms(student, teacher, temperature=1.0, mask=None, direction="forward"):
    """F.kl_div wants the student's logarithms."""
    p, q = (teacher.detach() / temperature).softmax(-1), (student / temperature).softmax(-1)
    each = (p * (p.clamp(min=1e-30).log() - q)).sum(-1)
    return temperature**2 * right["mean_of"](each, mask)


def kl_that_meets_nothing_times_infinity(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def kl_hiding_the_infinite(log_p, log_q):
    ratio = log_p.clamp(min=-50) - log_q.clamp(min=-50)
    return (log_p.exp() * ratio).sum(-1)


def jensen_with_sides_swapped(student, teacher, beta=0.5, mask=None):
    return right["jensen_shannon"](student, teacher, 1 - beta, mask)


def jensen_with_an_even_mixture(student, teacher, beta=0.5, mask=None):
    log_p, log_q = teacher.detach().log_softmax(-1), student.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    each = beta * right["kl"](log_p, log_m) + (1 - beta) * right["kl"](log_q, log_m)
    return right["mean_of"](each, mask)


def share_of_the_labels(student, teacher, labels, temperature, share=0.5):
    return right["labels_and_soft_targets"](student, teacher, labels, temperature, 1 - share)


def labels_softened_too(student, teacher, labels, temperature, share=0.5):
    soft = right["distillation_loss"](student, teacher, temperature)
    return (1 - share) * F.cross_entropy(student / temperature, labels) + share * soft


def labels_of_the_unsure(teacher, least=0.0):
    labels, sure = right["pseudo_labels"](teacher, least)
    return labels, ~sure if least else sure


def hidden_summed(student, teacher, projection=None, mask=None):
    return right["hidden_loss"](student, teacher, projection, mask) * teacher.shape[-1]


def hidden_with_padding(student, teacher, projection=None, mask=None):
    return right["hidden_loss"](student, teacher, projection)


def hidden_with_a_frozen_projection(student, teacher, projection=None, mask=None):
    if projection is not None:
        projection = torch.nn.Linear(*projection.weight.shape[::-1])
    return right["hidden_loss"](student, teacher, projection, mask)


def hidden_where_the_teacher_learns(student, teacher, projection=None, mask=None):
    return right["hidden_loss"](student, teacher, projection, mask) + 0 * teacher.sum()


def cosine_itself(student, teacher, mask=None):
    return 1 - right["cosine_loss"](student, teacher, mask)


def cosine_where_the_teacher_learns(student, teacher, mask=None):
    return right["cosine_loss"](student, teacher, mask) + 0 * teacher.sum()


def attention_swapped(student, teacher, mask=None):
    return right["attention_loss"](teacher, student, mask)


def attention_of_keys_left_out(student, teacher, mask=None):
    """Counts the queries that are padding."""
    return right["attention_loss"](student, teacher)


def attention_without_a_floor(student, teacher, mask=None):
    each = (teacher * (teacher.log() - student.log())).nansum(-1)
    return each.mean() if mask is None else right["attention_loss"](student, teacher, mask)


def relation_without_the_root(values, n_heads, mask=None):
    width = values.shape[-1] // n_heads
    return right["value_relation"](values * width**0.25, n_heads, mask)


def relation_with_padding(values, n_heads, mask=None):
    return right["value_relation"](values, n_heads)


def relation_cut_the_other_way(values, n_heads, mask=None):
    width = values.shape[-1] // n_heads
    mixed = values.unflatten(-1, (width, n_heads)).transpose(-1, -2).flatten(-2)
    return right["value_relation"](mixed, n_heads, mask)


def first_layers(n_student, n_teacher):
    return list(range(n_student))


def layers_from_the_first(n_student, n_teacher):
    return [i * n_teacher // n_student for i in range(n_student)]


def prompt_learned_too(ids, n_prompt, stop=None):
    mask = right["answer_mask"](ids, n_prompt, stop).clone()
    mask[:, : n_prompt - 1] = True
    return mask


def answers_shifted(ids, n_prompt, stop=None):
    """The mask of tokens, where that of what predicts them is meant."""
    mask = right["answer_mask"](ids, n_prompt, stop)
    return F.pad(mask[:, :-1], (1, 0))


def stop_left_out(ids, n_prompt, stop=None):
    mask = right["answer_mask"](ids, n_prompt, stop)
    return mask if stop is None else mask & (ids[:, 1:] != stop)


def stop_never_seen(ids, n_prompt, stop=None):
    return right["answer_mask"](ids, n_prompt)


def stopped_by_the_prompt(ids, n_prompt, stop=None):
    mask = right["answer_mask"](ids, n_prompt)
    return mask if stop is None else mask & ((ids == stop).cumsum(1)[:, :-1] == 0)


def sequence_without_a_shift(student, ids, n_prompt, stop=None):
    mask, logits = right["answer_mask"](ids, n_prompt, stop), student(ids)[:, 1:]
    each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return right["mean_of"](each, mask)


def tokens_with_the_teachers_gradient(student, teacher, ids, n_prompt, *options):
    loss = right["token_loss"](student, teacher, ids, n_prompt, *options)
    return loss + 0 * teacher(ids).sum()


def tokens_without_a_mask(student, teacher, ids, n_prompt, *options):
    return right["token_loss"](student, teacher, ids, 1, *options[:2])


def tokens_of_the_student_as_teacher(student, teacher, ids, n_prompt, *options):
    return right["token_loss"](student, student, ids, n_prompt, *options)


def written_by_the_other(prompts, student, other, share, generator):
    return right["written_by"](prompts, student, other, 1 - share, generator)


def written_with_gradients(prompts, student, other, share, generator):
    own = torch.rand((), generator=generator).item() < share
    return (student if own else other)(prompts), own


def written_by_turns(prompts, student, other, share, generator):
    own = share >= 0.5
    with torch.no_grad():
        return (student if own else other)(prompts), own


def mean_with_what_does_not_count(each, mask):
    """Divides by all, so that more padding is less loss."""
    right["mean_of"](each, mask)
    return each.mean() if mask is None else (each * mask).mean()


def bug(function, description, wrong, tests=""):
    return Bug(function, description, refusing(right[function], wrong), tests)


BUGS = [
    bug("soft_targets", "multiply by T", targets_times_the_temperature),
    bug("soft_targets", "break ties", targets_of_the_first),
    bug("distillation_loss", "takes the teacher twice", teacher_on_both_sides),
    bug("distillation_loss", "averages over V", averaged_over_the_vocabulary),
    bug("distillation_loss", "forgets T²", without_the_square, "torchs or limit"),
    bug("distillation_loss", "has T once", with_the_temperature_once, "torchs or limit"),
    bug("distillation_loss", "softens one side", softened_teacher_alone, "torchs or limit"),
    bug("distillation_loss", "swaps the sides", sides_swapped),
    bug("distillation_loss", "trains the teacher", teacher_learns_too),
    bug("distillation_loss", "takes probabilities", probabilities_for_logarithms),
    bug("kl", "multiplies 0 by infinity", kl_that_meets_nothing_times_infinity, "kl or forbid"),
    bug("kl", "hides what is infinite", kl_hiding_the_infinite, "kl"),
    bug("jensen_shannon", "swaps the sides", jensen_with_sides_swapped),
    bug("jensen_shannon", "mixes evenly", jensen_with_an_even_mixture),
    bug("labels_and_soft_targets", "has the other share", share_of_the_labels),
    bug("labels_and_soft_targets", "softens labels", labels_softened_too),
    bug("pseudo_labels", "keep the unsure", labels_of_the_unsure),
    bug("hidden_loss", "is a sum", hidden_summed),
    bug("hidden_loss", "counts padding", hidden_with_padding),
    bug("hidden_loss", "does not train the projection", hidden_with_a_frozen_projection),
    bug("hidden_loss", "trains the teacher", hidden_where_the_teacher_learns),
    bug("cosine_loss", "is the cosine", cosine_itself),
    bug("cosine_loss", "trains the teacher", cosine_where_the_teacher_learns),
    bug("attention_loss", "swaps the sides", attention_swapped, "attention_loss"),
    bug("attention_loss", "counts padding", attention_of_keys_left_out, "attention_loss"),
    bug("attention_loss", "has no floor", attention_without_a_floor, "attention_loss"),
    bug("value_relation", "takes no root", relation_without_the_root),
    bug("value_relation", "sees padding", relation_with_padding),
    bug("value_relation", "mixes the heads", relation_cut_the_other_way),
    bug("uniform_layers", "are the first", first_layers),
    bug("uniform_layers", "begin at the first", layers_from_the_first),
    bug("answer_mask", "has the prompt in", prompt_learned_too),
    bug("answer_mask", "is shifted", answers_shifted),
    bug("answer_mask", "leaves the stop out", stop_left_out),
    bug("answer_mask", "goes on after the stop", stop_never_seen),
    bug("answer_mask", "stops in the prompt", stopped_by_the_prompt),
    bug("sequence_loss", "is not shifted", sequence_without_a_shift),
    bug("token_loss", "trains the teacher", tokens_with_the_teachers_gradient),
    bug("token_loss", "learns the prompt", tokens_without_a_mask),
    bug("token_loss", "asks the student", tokens_of_the_student_as_teacher),
    Bug("written_by", "takes the other's share", written_by_the_other),
    Bug("written_by", "keeps gradients", written_with_gradients),
    Bug("written_by", "does not draw", written_by_turns),
    bug("mean_of", "divides by all", mean_with_what_does_not_count, "by_hand or padding"),
]
