"""Our GGUF against the `gguf` package's, and in llama.cpp against our own decoder."""

from __future__ import annotations

import copy
import json

import gguf
import pytest
import tiny_decoder
import torch
from writing import greedy_ids

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.positions import pair_halves
from course_utils.compression import gguf as blocks
from course_utils.compression import gguf_file, k_quants
from course_utils.engines import load_engine

TOKENIZER = gguf_file.tokenizer_metadata(
    tiny_decoder.TOKENS,
    tiny_decoder.MERGES,
    special={len(tiny_decoder.TOKENS) - 1},
    end=len(tiny_decoder.TOKENS) - 1,
)
DEQUANTIZE = {
    "F32": lambda data: data.view(torch.float32),
    "F16": lambda data: data.view(torch.float16).float(),
    **{k: getattr(blocks, f"dequantize_{k.lower()}") for k in ("Q8_0", "Q4_0", "Q4_1")},
    **{k: getattr(blocks, f"dequantize_{k.lower()}") for k in ("Q5_0", "Q5_1")},
    **{k: getattr(k_quants, f"dequantize_{k.lower()}") for k in ("Q4_K", "Q5_K", "Q6_K")},
}


@pytest.fixture(scope="module")
def model():
    return tiny_decoder.trained()


def rounded(model, kind):
    """The model with each matrix as the file holds it."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.ndim == 2:
                data = gguf_file.KINDS[kind][1](parameter)
                parameter.copy_(DEQUANTIZE[kind](data).view_as(parameter))
    return copied


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────


def small(**changes):
    torch.manual_seed(0)
    sizes = {"d_model": 64, "n_heads": 2, "n_layers": 2, "d_ff": 96, **changes}
    return Decoder(DecoderConfig(len(tiny_decoder.TOKENS), **sizes))


def packages_file(path, metadata, tensors, kinds):
    """The same file by gguf's own writer."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue  # the writer puts it first by itself
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            add = {bool: writer.add_bool, str: writer.add_string, float: writer.add_float32}
            add.get(type(value), writer.add_uint32)(key, value)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[kinds[name]]
        data = gguf.quants.quantize(tensor.numpy(), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q5_1", "Q4_0"])
def test_write_gguf_writes_the_packages_bytes(tmp_path, kind):
    net = small(n_kv_heads=1, tied=False)
    tensors = gguf_file.decoder_tensors(net)
    metadata = {**gguf_file.decoder_metadata(net.config), **TOKENIZER}
    kinds = gguf_file.decoder_kinds(tensors, kind)
    size = gguf_file.write_gguf(tmp_path / "ours.gguf", metadata, tensors, kinds)
    ours = (tmp_path / "ours.gguf").read_bytes()
    assert len(ours) == size
    assert ours == packages_file(tmp_path / "theirs.gguf", metadata, tensors, kinds)


def test_write_gguf_with_k_quants_is_read_back(tmp_path, model):
    """The package cannot write these, but it reads them."""
    file = tmp_path / "k.gguf"
    gguf_file.write_decoder(file, model, TOKENIZER, "Q4_K", "Q6_K")
    tensors = gguf_file.decoder_tensors(model)
    found = {t.name: t for t in gguf.GGUFReader(file).tensors}
    assert set(found) == set(tensors)
    assert found["blk.1.attn_q.weight"].tensor_type.name == "Q4_K"
    assert found["token_embd.weight"].tensor_type.name == "Q6_K"
    assert found["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    for name, tensor in tensors.items():
        kind = found[name].tensor_type
        data = gguf.quants.dequantize(found[name].data.copy(), kind)
        back = torch.from_numpy(data).view_as(tensor)
        limit = {"F32": 0, "Q6_K": 0.03, "Q4_K": 0.12}[kind.name]
        assert (back - tensor).norm() <= limit * tensor.norm(), name


def test_fitting_kind_and_decoder_kinds():
    """Norms in F32; rows of 256 in Q4_K, of 96 in Q5_0, of 100 in F16; the embedding in Q8_0."""
    shapes = {"token_embd.weight": (5, 256), "output.weight": (5, 100), "a_norm.weight": (256,)}
    shapes |= {"q.weight": (4, 256), "down.weight": (256, 96)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    kinds = gguf_file.decoder_kinds(tensors, "Q4_K")
    assert list(kinds.values()) == ["Q8_0", "F16", "F32", "Q4_K", "Q5_0"]
    assert gguf_file.fitting_kind("F16", 7) == "F16"


def test_value_bytes_by_hand():
    assert gguf_file.value_bytes(True).hex() == "0700000001"
    assert gguf_file.value_bytes(1.0).hex() == "060000000000803f"
    assert gguf_file.value_bytes("ab").hex() == "0800000002000000000000006162"
    texts = gguf_file.value_bytes(["a", "b"]).hex()
    assert texts == "0900000008000000" + "0200000000000000" + "010000000000000061010000000000000062"


def test_metadata_of_tokenizer_is_that_of_its_parts():
    """From the JSON of `tokenizers`, whose merges are lists today and were texts once."""
    state = json.loads(tiny_decoder.tokenizer().to_str())
    end = len(tiny_decoder.TOKENS) - 1
    assert gguf_file.metadata_of_tokenizer(state, end + 1, end) == TOKENIZER
    state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]
    filled = gguf_file.metadata_of_tokenizer(state, end + 3, end)
    assert filled["tokenizer.ggml.merges"] == TOKENIZER["tokenizer.ggml.merges"]
    assert filled["tokenizer.ggml.tokens"][end:] == ["<|end|>", "<unused 264>", "<unused 265>"]
    assert filled["tokenizer.ggml.token_type"][end:] == [3, 3, 3]
    with pytest.raises(ValueError, match="type is 'WordPiece'; only BPE"):
        gguf_file.metadata_of_tokenizer({"model": {"type": "WordPiece"}}, 1, 0)


def test_neighbouring_pairs_undoes_pair_halves():
    weight = torch.randn(24, 5)
    assert torch.equal(gguf_file.neighbouring_pairs(pair_halves(weight, 3), 3), weight)
    assert not torch.equal(gguf_file.neighbouring_pairs(weight, 3), weight)


# ── in llama.cpp ──────────────────────────────────────────────────────────────────────────────────


PROMPTS = ["The quality of", "as the gentle rain", "it is twice"]


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q5_1", "Q4_0", "Q6_K", "Q5_K", "Q4_K"])
def test_llama_cpp_answers_as_the_decoder_does(tmp_path, model, kind):
    """24 greedy tokens, and log-probabilities, of the weights as the file has them."""
    file = tmp_path / f"{kind}.gguf"
    size = gguf_file.write_decoder(file, model, TOKENIZER, kind, kind)
    net, tokenizer = rounded(model, kind), tiny_decoder.tokenizer()
    with load_engine("llama.cpp", file, threads=1, parallel=1) as engine:
        answers = engine.generate(PROMPTS, max_new_tokens=24)
        scores = engine.logprobs(PROMPTS, [" mercy", " from", " blest"])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        assert answer.prompt_tokens == ids.shape[1]
        (written,) = greedy_ids(net.read_and_reorder(), ids, 24)
        assert list(answer.tokens) == list(written), answer.text
    ours = torch.tensor(
        [[logprob(net, tokenizer, p, e) for e in (" mercy", " from", " blest")] for p in PROMPTS]
    )
    # llama.cpp rounds what comes into a quantized product to 8 bits a number.
    apart = (ours - torch.tensor(scores)).abs()
    exact = kind in ("F32", "F16")
    assert apart.max() <= (0.02 if exact else 0.05 * ours.abs().max()), apart.max()
    assert file.stat().st_size == size


def logprob(net, tokenizer, prompt, ending):
    before, after = tokenizer.encode(prompt).ids, tokenizer.encode(ending).ids
    with torch.no_grad():
        rows = net(torch.tensor([before + after]))[0].log_softmax(-1)
    return sum(rows[len(before) - 1 + i, token].item() for i, token in enumerate(after))


def test_llama_cpp_answers_as_an_untied_decoder_with_one_head_a_key(tmp_path):
    net = tiny_decoder.trained(d_model=64, d_ff=160, n_kv_heads=4, tied=False)
    gguf_file.write_decoder(tmp_path / "m.gguf", net, TOKENIZER, "F16", "F16")
    with load_engine("llama.cpp", tmp_path / "m.gguf", threads=1, parallel=1) as engine:
        (answer,) = engine.generate(PROMPTS[:1], max_new_tokens=24)
    ids = torch.tensor([tiny_decoder.tokenizer().encode(PROMPTS[0]).ids])
    assert list(answer.tokens) == list(greedy_ids(net.read_and_reorder(), ids, 24)[0])


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_refused_by_name(tmp_path):
    path = tmp_path / "x.gguf"
    with pytest.raises(ValueError, match="the tokenizer has 2 tokens, the model 264 rows"):
        gguf_file.write_decoder(path, small(), gguf_file.tokenizer_metadata("ab", [], {}, 0))
    with pytest.raises(ValueError, match="rows have 64 numbers; this format has blocks of 256"):
        gguf_file.write_gguf(path, {}, {"a": torch.zeros(2, 64)}, {"a": "Q4_K"})
    with pytest.raises(ValueError, match="kind is 'Q2_K'"):
        gguf_file.write_decoder(path, small(), TOKENIZER, "Q2_K")
    with pytest.raises(ValueError, match="causal is False"):
        gguf_file.write_decoder(path, small(causal=False), TOKENIZER)
    scaled = small(scaling={"rope_type": "linear", "factor": 2.0})
    with pytest.raises(ValueError, match="scaling is 'linear'"):
        gguf_file.write_decoder(path, scaled, TOKENIZER)
    with pytest.raises(ValueError, match="end is 2; the tokens are 0 … 1"):
        gguf_file.tokenizer_metadata("ab", [], {}, 2)
    with pytest.raises(TypeError, match="a value is NoneType"):
        gguf_file.value_bytes(None)
    with pytest.raises(TypeError, match="a list of 2 values has 2 types"):
        gguf_file.value_bytes([1, "a"])
    with pytest.raises(ValueError, match="inf or NaN"):
        gguf_file.tensor_bytes(torch.tensor([float("nan")]), "F32")
    assert not path.exists()
