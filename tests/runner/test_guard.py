"""The guard on the committed notebooks, and the proof that it turns red.

`course check` compares every committed output with a fresh run. Here: the notebooks are in the form
that makes this possible, an altered output or a broken helper is noticed, and little is exempt.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import toy_course
from toy_course import COST, PARAMETERS, ROOT

from course_utils.runner import boxes, canonical, comparison, notebooks, opening, readme, record

PATHS = notebooks.all_notebooks(ROOT)
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
PATTERNS = comparison.sanitizer()
MASKED = re.compile("|".join(PATTERNS))


# ── the form of the notebooks ───────────────────────────────────────────────────────────────────


@each_notebook
@pytest.mark.parametrize("tag", ["badge", "cost", "bootstrap", "parameters"])
def test_the_opening_is_complete(path: Path, tag: str) -> None:
    notebook = notebooks.load(path)
    assert notebooks.tagged(notebook, tag), f"no cell tagged {tag!r}"
    if tag == "parameters":
        assert {"PROFILE", "SEED"} <= set(notebooks.parameters_of(notebook))


def test_badges_colab_cells_and_readme_are_current() -> None:
    assert opening.stale(ROOT) == [], "run: course badges"
    assert boxes.stale(ROOT) == [], "run: course badges"
    assert not readme.is_stale(ROOT), "run: course badges"


@each_notebook
def test_the_file_is_as_recorded(path: Path) -> None:
    notebook = notebooks.load(path)
    assert notebook["metadata"].get("course"), "never recorded; run: course record"
    assert canonical.canonical(notebook) == path.read_text(encoding="utf-8"), "run: course record"


@each_notebook
def test_every_cell_has_run_without_error_or_warning(path: Path) -> None:
    for number, cell in enumerate(notebooks.code_cells(notebooks.load(path)), start=1):
        assert notebooks.source_of(cell).strip(), f"code cell {number} is empty"
        assert cell["execution_count"] == number
        kinds = {output.get("name") or output["output_type"] for output in cell["outputs"]}
        assert not kinds & {"stderr", "error"}, f"In [{number}]"


@each_notebook
def test_only_live_widgets_are_exempt(path: Path) -> None:
    cells = notebooks.code_cells(notebooks.load(path))
    exempt = [c for c in cells if comparison.EXEMPTING_TAGS & set(notebooks.tags_of(c))]
    commented = [c for c in cells if re.search(r"#\s*(NBVAL|PYTEST)_", notebooks.source_of(c))]
    assert not commented, "a cell is exempt by its tag, which is counted, not by a comment"
    print(f"{path.stem}: {len(exempt)} of {len(cells)} code cells are not compared")
    for cell in exempt:
        source = notebooks.source_of(cell).lower()
        live = re.search(r"widget|interact|explor|\blive\(", source)
        assert live, "only a live widget may be exempt from the guard"


# ── an altered output ───────────────────────────────────────────────────────────────────────────


def _texts(output: dict) -> list[tuple[dict, str]]:
    """The places in an output that hold compared text: (dictionary, key)."""
    if output["output_type"] == "stream":
        return [(output, "text")]
    data = output.get("data", {})
    return [(data, kind) for kind in data if kind not in comparison.NOT_COMPARED]


def _alter(text: str, inside: bool) -> str | None:
    """Change one letter or digit, inside ⟨…⟩ or outside; None when there is none."""
    for match in re.finditer(r"[A-Za-z0-9]", text):
        masked = any(m.start() < match.start() < m.end() for m in MASKED.finditer(text))
        if masked is inside:
            other = "x" if match[0] != "x" else "y"
            return text[: match.start()] + other + text[match.end() :]
    return None


def _alterations(cell: dict, inside: bool) -> list[dict]:
    """Copies of a cell, in each of which one compared text is altered."""
    altered = []
    places = [(i, j) for i, o in enumerate(cell["outputs"]) for j in range(len(_texts(o)))]
    for i, j in places:
        twin = copy.deepcopy(cell)
        holder, key = _texts(twin["outputs"][i])[j]
        if isinstance(holder[key], str) and (new := _alter(holder[key], inside)):
            holder[key] = new
            altered.append(twin)
    return altered


def _compared(path: Path) -> list[dict]:
    cells = notebooks.code_cells(notebooks.joined(notebooks.load(path)))
    return [cell for cell in cells if not comparison.EXEMPTING_TAGS & set(notebooks.tags_of(cell))]


@each_notebook
def test_every_altered_output_is_noticed(path: Path) -> None:
    altered = 0
    for cell in _compared(path):
        assert comparison.difference(cell, cell, PATTERNS) == ""
        for twin in _alterations(cell, inside=False):
            altered += 1
            assert comparison.difference(twin, cell, PATTERNS), notebooks.source_of(cell)
        for output in cell["outputs"]:
            if _texts(output):
                fewer = {**cell, "outputs": [o for o in cell["outputs"] if o is not output]}
                assert comparison.difference(fewer, cell, PATTERNS), notebooks.source_of(cell)
    assert altered, "nothing in this notebook is compared"


@each_notebook
def test_a_measured_value_may_change(path: Path) -> None:
    for cell in _compared(path):
        for twin in _alterations(cell, inside=True):
            assert comparison.difference(twin, cell, PATTERNS) == "", notebooks.source_of(cell)


# ── the guard at work, on a notebook made for it ────────────────────────────────────────────────

# Breaks one function of a module in whatever process imports it, kernels among them. The wrong
# version has the name and the source of the right one: only what it computes differs.
BREAKER = """
import importlib.abc, importlib.util, sys

class Breaker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        right = spec.loader.exec_module
        def wrong(module):
            right(module)
            exec({code!r}, module.__dict__)
        spec.loader.exec_module = wrong
        return spec

sys.meta_path.insert(0, Breaker())
"""
TOP_P_ONE_TOO_FEW = """
import functools
_right = top_p
@functools.wraps(_right)
def top_p(logits, p):
    kept = _right(logits, p)
    infinite = float("inf")
    least = kept.masked_fill(kept == -infinite, infinite).argmin(-1, keepdim=True)
    fewer = kept.scatter(-1, least, -infinite)
    return fewer if (fewer > -infinite).any() else kept
"""
LAYERS_HALF_AS_LOUD = """
_right = Recurrent.forward
def _faint(self, x, lengths=None, state=None):
    outputs, last = _right(self, x, lengths, state)
    return 0.5 * outputs, last
Recurrent.forward = _faint
"""
DECODER_WITHOUT_TRIANGLE = """
_right = DecoderBlock.forward
def _blind(self, x, **seen):
    return _right(self, x, **{**seen, "causal": False})
DecoderBlock.forward = _blind
"""
WEIGHTS_WITHOUT_SCALE = """
import functools
_right = attention_weights
@functools.wraps(_right)
def attention_weights(q, k, mask=None, *, scale=None, bias=None):
    return _right(q, k, mask, bias=bias)
"""
BM25_WITHOUT_LENGTH = """
import functools
_right = bm25_scores
@functools.wraps(_right)
def bm25_scores(query, documents, *, k1=1.5, b=0.75, variant="lucene"):
    return _right(query, documents, k1=k1, b=0.0, variant=variant)
"""
PROMPT_WITH_SHOTS_REVERSED = """
_right = Template.prompt
def _reversed(self, text, shots=(), **options):
    return _right(self, text, list(shots)[::-1], **options)
Template.prompt = _reversed
"""
SHARES_NOT_FILLED_UP = """
import functools
_right = rank_indices
@functools.wraps(_right)
def rank_indices(n, rank, world_size, **order):
    everyone = [_right(n, r, world_size, **order) for r in range(world_size)]
    kept = list(dict.fromkeys(i for row in zip(*everyone) for i in row))
    return kept[rank::world_size]
"""
OPTIMIZER_NEVER_SHARDED = """
import functools
_right = state_bytes
@functools.wraps(_right)
def state_bytes(n_parameters, world_size, stage, *costs):
    whole, held = (_right(n_parameters, world_size, each, *costs) for each in (0, stage))
    return held._replace(optimizer=whole.optimizer)
"""
CODES_A_BYTE_EACH = """
def pack_bits(codes, bits):
    return codes.flatten().to(torch.uint8)
"""
ROUNDING_THAT_STOPS_GRADIENTS = """
_right = fake_quantize
def fake_quantize(x, scale, bits):
    return _right(x, scale, bits).detach() + 0 * x
"""
HARD_LABELS_LEFT_SOFT = """
_right = soft_targets
def soft_targets(logits, temperature):
    return _right(logits, temperature or 0.1)
"""
EXAM_WITHOUT_ITS_LAST = """
_right = draw
def draw(sentences, **options):
    drawn = _right(sentences, **options)
    return drawn._replace(exam=drawn.exam[:-1])
"""
BLOCKS_ONE_MORE_THAWED = """
_right = train_last
def train_last(model, blocks, k):
    return _right(model, blocks, k + 1)
"""
ADAPTERS_ONE_RANK_UP = """
_right = inject_lora
def inject_lora(model, pattern, rank, alpha, **options):
    return _right(model, pattern, rank + 1, alpha, **options)
"""
PREFIX_WITHOUT_ITS_FIRST_STEP = """
_right = prompt_as_prefix
def prompt_as_prefix(tuned):
    prefix = _right(tuned)
    return FreePrefix(prefix.keys[:, :, 1:], prefix.values[:, :, 1:])
"""
MERGES_WITH_TIES_TURNED = """
def most_frequent(counts):
    return max(counts, key=lambda pair: (counts[pair], pair))
"""
FURTHER_EXAMPLES_KEPT = """
own_part = str.strip
"""

NUCLEUS = (
    "import torch\n"
    "from course_utils.claims import measured\n"
    "from course_utils.inference.processors import top_p\n"
    "logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()\n"
    "print('tokens kept:', int((top_p(logits, 0.9) > -torch.inf).sum()))\n"
    "print('largest logit', measured(logits.max()))"
)


def _broken(folder: Path, module: str, code: str) -> dict[str, str]:
    """The environment in which a function is broken."""
    folder.mkdir(exist_ok=True)
    text = BREAKER.format(module=module, code=code)
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def nucleus(tmp_path_factory) -> Path:
    """A recorded notebook that uses a helper."""
    root = tmp_path_factory.mktemp("guard")
    toy_course.make(root, n00_nucleus=toy_course.notebook("# N", COST, PARAMETERS, NUCLEUS))
    assert record.record([], root=root) == 0
    return root / "notebooks" / "00_nucleus.ipynb"


def test_the_guard_is_green_on_an_unchanged_notebook_and_red_on_an_altered_one(
    nucleus: Path,
) -> None:
    altered = nucleus.with_name("01_altered.ipynb")
    text = nucleus.read_text(encoding="utf-8")
    assert "tokens kept: 3" in text
    altered.write_text(text.replace("tokens kept: 3", "tokens kept: 4"), encoding="utf-8")
    done = toy_course.course(ROOT, "check", str(nucleus), str(altered))
    assert done.returncode == 1
    assert "3 passed" in done.stdout  # two cells of the one, the first of the other
    assert "1 failed" in done.stdout
    assert "Cell outputs differ" in done.stdout
    assert "tokens kept: 4" in done.stdout


def test_the_guard_is_green_when_a_measured_value_differs(nucleus: Path) -> None:
    other = nucleus.with_name("02_other.ipynb")
    text = nucleus.read_text(encoding="utf-8")
    changed = re.sub("⟨[^⟩]*⟩", "⟨another⟩", text)
    assert changed != text
    other.write_text(changed, encoding="utf-8")
    done = toy_course.course(ROOT, "check", str(other))
    assert done.returncode == 0, done.stdout
    assert "recorded with" not in done.stdout


def test_a_notebook_recorded_with_other_code_is_named_and_no_failure(nucleus: Path) -> None:
    other = nucleus.with_name("03_stale.ipynb")
    notebook = notebooks.load(nucleus)
    notebook["metadata"]["course"]["fingerprint"] = "of other code"
    other.write_text(json.dumps(notebook), encoding="utf-8")
    done = toy_course.course(ROOT, "check", str(other))
    assert done.returncode == 0, done.stdout
    said = "03_stale: recorded with other code; course record 03_stale stores it anew\n"
    assert done.stdout.endswith(said)


def test_the_guard_is_red_when_a_helper_breaks(nucleus: Path, tmp_path: Path) -> None:
    environment = _broken(tmp_path / "site", "course_utils.inference.processors", TOP_P_ONE_TOO_FEW)
    done = toy_course.course(ROOT, "check", str(nucleus), **environment)
    assert done.returncode == 1
    assert "Cell outputs differ" in done.stdout
    assert "+ tokens kept: 2" in done.stdout or "tokens kept: 2" in done.stdout


# ── the guard at work, on the real notebooks ────────────────────────────────────────────────────

# notebook: module, how it is broken, and a word of the cell that must turn red
BREAKS = {
    "00_how_llms_are_built": (
        "course_utils.building.tokenizer",
        MERGES_WITH_TIES_TURNED,
        "a toy",
    ),
    "01_recurrent_networks": (
        "course_utils.architectures.recurrent",
        LAYERS_HALF_AS_LOUD,
        "layers equal torch",
    ),
    "02_attention": ("course_utils.architectures.attention", WEIGHTS_WITHOUT_SCALE, "kitten"),
    "03_transformer_families": (
        "course_utils.architectures.decoder",
        DECODER_WITHOUT_TRIANGLE,
        "A1b",
    ),
    "04_data_parallel": ("course_utils.parallel.data_parallel", SHARES_NOT_FILLED_UP, "D3"),
    "05_sharded_data_parallel": (
        "course_utils.parallel.sharding",
        OPTIMIZER_NEVER_SHARDED,
        "D6",
    ),
    "06_fine_tuning": ("course_utils.finetuning.transfer", BLOCKS_ONE_MORE_THAWED, "06.train_last"),
    "07_lora_and_qlora": ("course_utils.finetuning.lora", ADAPTERS_ONE_RANK_UP, "T3c"),
    "08_prompt_tuning": (
        "course_utils.finetuning.prompt_tuning",
        PREFIX_WITHOUT_ITS_FIRST_STEP,
        "T5f",
    ),
    "09_decoding": ("course_utils.inference.processors", TOP_P_ONE_TOO_FEW, "top_p"),
    "10_prompting": ("course_utils.prompting.prompts", PROMPT_WITH_SHOTS_REVERSED, "lovely day"),
    "11_reasoning_and_acting": (
        "course_utils.prompting.reasoning",
        FURTHER_EXAMPLES_KEPT,
        "And now",
    ),
    "12_retrieval_augmented_generation": (
        "course_utils.prompting.retrieval",
        BM25_WITHOUT_LENGTH,
        "by hand",
    ),
    "13_quantization": ("course_utils.compression.rtn", CODES_A_BYTE_EACH, "C2"),
    "14_quantization_aware_training": (
        "course_utils.compression.qat",
        ROUNDING_THAT_STOPS_GRADIENTS,
        "C6a",
    ),
    "15_distillation": (
        "course_utils.compression.distillation",
        HARD_LABELS_LEFT_SOFT,
        "15.soft_targets",
    ),
    "16_pruning": (
        "course_utils.tasks.editorials",
        EXAM_WITHOUT_ITS_LAST,
        "the first two",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_helper_turns_its_notebook_red(name: str, tmp_path: Path) -> None:
    path = ROOT / "notebooks" / f"{name}.ipynb"
    if not path.exists():
        pytest.skip(f"{name} is not there yet")
    module, code, word = BREAKS[name]
    environment = _broken(tmp_path / "site", module, code)
    # --exitfirst: the first red cell is enough, and what comes after takes minutes.
    command = [sys.executable, "-m", "pytest", "-p", "course_utils.runner.guard_plugin"]
    command += ["--nbval", "--exitfirst", "--quiet", "--color=no"]
    done = subprocess.run(
        [*command, str(path)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout
    assert word in done.stdout
