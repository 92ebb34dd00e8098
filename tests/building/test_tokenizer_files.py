"""The file of a tokenizer: read back the same, written as `tokenizers` writes it."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as Theirs
from tokenizers import decoders, pre_tokenizers

from course_utils.building import tokenizer as bpe
from course_utils.building import tokenizer_files as files

TEXT = "low lower lowest 12 naïve"


@pytest.mark.parametrize("digits", [False, True])
def test_to_json_is_what_tokenizers_writes(digits):
    text = files.to_json(bpe.train([TEXT], 5, specials=["<end>"], digits=digits))
    assert Theirs.from_str(text).to_str(pretty=True) == text


@pytest.mark.parametrize("digits", [False, True])
def test_save_and_load(tmp_path, digits):
    ours = bpe.train([TEXT], 5, specials=["<end>", "<a b>"], digits=digits)
    files.save(ours, tmp_path / "tokenizer.json")
    back = files.load(tmp_path / "tokenizer.json")
    assert (back.vocab, back.merges) == (ours.vocab, ours.merges)
    assert (back.specials, back.digits) == (ours.specials, ours.digits)
    assert back.encode(TEXT + "<end>", specials=True) == ours.encode(TEXT + "<end>", specials=True)
    assert Theirs.from_file(str(tmp_path / "tokenizer.json")).encode(TEXT).ids == ours.encode(TEXT)


def test_from_json_reads_merges_written_as_one_string():
    """As files from before tokenizers 0.20 have them."""
    whole = json.loads(files.to_json(bpe.train([TEXT], 5)))
    merges = [tuple(merge) for merge in whole["model"]["merges"]]
    whole["model"]["merges"] = [" ".join(merge) for merge in merges]
    back = files.from_json(json.dumps(whole))
    assert [(files.spell(a), files.spell(b)) for a, b in back.merges] == merges


def test_spell_is_the_table_of_byte_level():
    """All 256 characters, each the one that `tokenizers` decodes to its byte."""
    characters = [files.spell(bytes([byte])) for byte in range(256)]
    assert sorted(characters) == sorted(pre_tokenizers.ByteLevel.alphabet())
    for byte in range(128):
        assert decoders.ByteLevel().decode([characters[byte]]) == chr(byte)
    assert files.unspell("".join(characters)) == bytes(range(256))
    with pytest.raises(ValueError, match="'日', which stands for no byte"):
        files.unspell("a日")


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("model", {"type": "WordPiece"}, "the model is WordPiece"),
        ("model", {"unk_token": "<unk>"}, "'unk_token': '<unk>'"),
        ("model", {"byte_fallback": True}, "'byte_fallback': True"),
        ("normalizer", {"type": "NFC"}, "the normalizer {'type': 'NFC'}"),
        ("pre_tokenizer", None, "words are cut by None"),
        ("pre_tokenizer", {"type": "Whitespace"}, "words are cut by {'type': 'Whitespace'"),
        ("pre_tokenizer", {"add_prefix_space": True}, "'add_prefix_space': True"),
        ("pre_tokenizer", {"use_regex": False}, "'use_regex': False"),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": False}]},
            "'individual_digits': False",
        ),
    ],
)
def test_from_json_refuses_what_it_does_not_know(part, value, said):
    whole = json.loads(files.to_json(bpe.train([TEXT], 5)))
    whole[part] = value if whole[part] is None or value is None else whole[part] | value
    with pytest.raises(ValueError, match=said):
        files.from_json(json.dumps(whole))
