"""Plausible wrong versions of course_utils.building.chat."""

from __future__ import annotations

from planting import Bug, originals

right = originals("building.chat")


def prompt_ids_that_obey_what_is_typed(tokenizer, text):
    right["check_specials"](tokenizer)
    user, reply = (tokenizer.specials[right[name]] for name in ("USER", "REPLY"))
    return [user, *tokenizer.encode(text, specials=True), reply]


def prompt_ids_without_a_turn(tokenizer, text):
    return right["prompt_ids"](tokenizer, text)[:-1]


def answer_ids_without_an_end(tokenizer, text):
    return right["answer_ids"](tokenizer, text)[:-1]


def prompt_text_as_typed(text):
    return f"{right['USER']}{text}{right['REPLY']}"


def gguf_tokenizer_with_specials_last(tokenizer):
    metadata = right["gguf_tokenizer"](tokenizer)
    tokens, n = metadata["tokenizer.ggml.tokens"], len(right["SPECIALS"])
    return metadata | {"tokenizer.ggml.tokens": tokens[n:] + tokens[:n]}


BUGS = [
    Bug("prompt_ids", "reads special tokens in what was typed",
        prompt_ids_that_obey_what_is_typed, "types_is_text"),
    Bug("prompt_ids", "does not give the turn to the model", prompt_ids_without_a_turn),
    Bug("answer_ids", "has no end", answer_ids_without_an_end),
    Bug("prompt_text", "passes special tokens on", prompt_text_as_typed),
    Bug("gguf_tokenizer", "puts special tokens last", gguf_tokenizer_with_specials_last),
]  # fmt: skip
