"""A chat as tokens: whose turn it is, and where an answer ends. Notebook 00.

Roles are special tokens, which text never makes: what a user types cannot end his turn. The same
format goes into a GGUF file, so that llama.cpp reads what training read.
"""

from __future__ import annotations

import json

from course_utils.building.tokenizer import Tokenizer
from course_utils.building.tokenizer_files import to_json
from course_utils.compression.gguf_file import Value, metadata_of_tokenizer

END, USER, REPLY = "<|end|>", "<|user|>", "<|reply|>"
SPECIALS = (END, USER, REPLY)


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """USER, the text as plain text, REPLY: from here on the model writes.

    >>> from course_utils.building import tokenizer
    >>> small = tokenizer.train(["a b"], 0, specials=SPECIALS)
    >>> ids = prompt_ids(small, "a<|end|>")
    >>> ids[0], ids[-1], small.specials[END] in ids  # typing the end sign ends nothing
    (1, 2, False)
    """
    check_specials(tokenizer)
    return [tokenizer.specials[USER], *tokenizer.encode(text), tokenizer.specials[REPLY]]


def answer_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The answer's tokens and the end sign, without which a model never learns to stop."""
    check_specials(tokenizer)
    return [*tokenizer.encode(text), tokenizer.specials[END]]


def prompt_text(text: str) -> str:
    """`prompt_ids` as a text, for an engine that reads special tokens in it.

    What looks like one is broken up, since the engine cannot tell who wrote it.

    >>> prompt_text("Good <|end|> morrow")
    '<|user|>Good < |end|> morrow<|reply|>'
    """
    for special in SPECIALS:
        text = text.replace(special, f"{special[0]} {special[1:]}")
    return f"{USER}{text}{REPLY}"


def check_specials(tokenizer: Tokenizer) -> None:
    missing = [special for special in SPECIALS if special not in tokenizer.specials]
    if missing:
        raise ValueError(f"the tokenizer lacks {missing[0]}; train it with specials=chat.SPECIALS")


def gguf_tokenizer(tokenizer: Tokenizer) -> dict[str, Value]:
    """The tokenizer as a GGUF file holds it. ValueError where an id has no token.

    >>> from course_utils.building import tokenizer
    >>> metadata = gguf_tokenizer(tokenizer.train(["low low"], 1, specials=SPECIALS))
    >>> metadata["tokenizer.ggml.merges"], metadata["tokenizer.ggml.tokens"][0]
    (['l o'], '<|end|>')
    """
    check_specials(tokenizer)
    ids = tokenizer.tokens.keys() | tokenizer.special_tokens.keys()
    if missing := [id for id in range(len(ids)) if id not in ids]:
        raise ValueError(f"id {missing[0]} has no token; a file lists all from 0 on")
    return metadata_of_tokenizer(json.loads(to_json(tokenizer)), len(ids), tokenizer.specials[END])
