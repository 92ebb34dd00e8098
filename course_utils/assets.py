"""Models and data of the course: fetched once, verified, cached, and loaded offline after that.

`data/assets.toml` says what there is. `fetch` brings one asset into the cache through the user's
own package index (see `fetching`); the loaders below turn it into a model or a plain Python value.
Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import html
import io
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from course_utils import fetching
from course_utils.fetching import Asset, AssetError, Member

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

__all__ = [
    "G2P_GRAPHEMES",
    "G2P_PHONEMES",
    "SENTIMENT_DOMAINS",
    "Asset",
    "AssetError",
    "PlayQuestion",
    "Rated",
    "ReactSet",
    "cache_folder",
    "checkpoint_folder",
    "data_folder",
    "describe",
    "fetch",
    "fetch_all",
    "gguf_path",
    "load_cmudict",
    "load_decoder",
    "load_encoder",
    "load_g2p",
    "load_react",
    "load_sentiment",
    "load_shakespeare",
    "load_shakespeare_questions",
    "load_word_problems",
    "names",
    "verify",
]

Progress = Callable[[str, str, int, int], None]  # asset, step, bytes done, bytes in all
CONVERSION = 1  # raise it when `_convert` changes, and cached conversions are made anew
CONVERTED = "-transformers"  # the converted folder of an asset is its name with this after it


# ── the catalogue and the cache ─────────────────────────────────────────────────────────────────


def cache_folder() -> Path:
    """Return the folder that assets are kept in: COURSE_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("COURSE_CACHE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("llms-measured", appauthor=False))


def data_folder() -> Path:
    """Return the folder of what the course authored: the installed package's, or the checkout's."""
    package = Path(__file__).parent
    installed = package / "_data"
    return installed if installed.exists() else package.parent / "data"


def _catalogue_file() -> Path:
    """Return the catalogue: COURSE_ASSETS, or the one among the course's own data."""
    if chosen := os.environ.get("COURSE_ASSETS"):
        return Path(chosen)
    return data_folder() / "assets.toml"


def _asset(name: str, table: dict[str, Any]) -> Asset:
    members = tuple(Member(**member) for member in table.pop("members"))
    inner = Member(**table.pop("inner")) if "inner" in table else None
    return Asset(name=name, members=members, inner=inner, **table)


@lru_cache(maxsize=8)
def _read_catalogue(file: Path) -> dict[str, Asset]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
        if (version := tables.pop("version")) != 1:
            raise AssetError(
                f"{file} is of format {version}, this course reads format 1; update the course"
            )
        return {name: _asset(name, table) for name, table in tables.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AssetError(
            f"the catalogue {file} cannot be read ({error}); restore data/assets.toml"
        ) from error


def _catalogue() -> dict[str, Asset]:
    return _read_catalogue(_catalogue_file())


def names() -> list[str]:
    """Return the names of all assets, in the order in which they are fetched."""
    return list(_catalogue())


def describe(name: str) -> Asset:
    """Return an asset's row of the catalogue: package, version, licence, citation, sizes.

    Raises AssetError for an unknown name.
    """
    try:
        return _catalogue()[name]
    except KeyError:
        raise AssetError(
            f"there is no asset {name!r}; the course has {', '.join(names())}"
        ) from None


# ── fetch ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _bars() -> Iterator[Progress]:
    """Show progress on stderr: bars on a terminal, elsewhere a line when a step begins."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr, force_jupyter=False)
    bars = Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[tuple[str, str], Any] = {}

    def report(name: str, step: str, done: int, total: int) -> None:
        label = f"{name}: {step}"
        if (name, step) not in tasks:
            tasks[name, step] = bars.add_task(label, total=total or None)
            if not console.is_terminal:
                size = f" {total / 1e6:,.1f} MB" if total else ""
                print(f"{label}{size} …", file=sys.stderr, flush=True)
        bars.update(tasks[name, step], completed=done, total=total or None)

    with bars:
        yield report


@contextmanager
def _reporting(name: str, progress: Progress | None) -> Iterator[fetching.Report]:
    """Yield a report for one asset; the default display appears only once there is work."""
    with ExitStack() as stack:

        def report(step: str, done: int, total: int) -> None:
            nonlocal progress
            progress = progress or stack.enter_context(_bars())
            progress(name, step, done, total)

        yield report


def _note_use(name: str) -> None:
    """Leave the name in the file COURSE_ASSET_LOG, by which `course record` knows what to cost."""
    if log := os.environ.get("COURSE_ASSET_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{name}\n")


def _download_and_unpack(asset: Asset, scratch: Path, report: fetching.Report) -> None:
    archive = fetching.download(asset, scratch, report)
    fetching.unpack(archive, asset, scratch, report)
    if archive.parent == scratch:
        archive.unlink()


def fetch(name: str, progress: Progress | None = None, *, verify: bool = False) -> Path:
    """Return the folder of an asset's verified members; fetch them if they are not there.

    `progress(name, step, done, total)` is called as bytes arrive; without it a bar is shown when
    there is something to do. `verify` hashes what is there instead of comparing sizes and times.
    Raises AssetError when there is no such asset, or it can be neither found nor fetched.
    """
    asset = describe(name)
    _note_use(name)

    def build(scratch: Path, report: fetching.Report) -> None:
        _download_and_unpack(asset, scratch, report)

    with _reporting(name, progress) as report:
        return fetching.install(cache_folder(), name, asset.digest, build, report, full=verify)


def _has_gguf(asset: Asset) -> bool:
    return asset.role == "decoder" and any(m.name.endswith(".gguf") for m in asset.members)


def fetch_all(
    names: Iterable[str] | None = None, progress: Progress | None = None, *, verify: bool = False
) -> dict[str, Path]:
    """Fetch the named assets, or all, and convert what must be converted; return their folders.

    Raises AssetError at the first that can't be had; those before it stay in the cache.
    """
    folders = {}
    for name in list(_catalogue()) if names is None else list(names):
        folders[name] = fetch(name, progress, verify=verify)
        if _has_gguf(describe(name)):
            _converted(name, progress, verify=verify)
    return folders


def verify(name: str) -> list[str]:
    """Hash everything that is cached of an asset and say what is wrong: nothing when it is sound.

    Neither fetches nor changes anything. `fetch_all([name], verify=True)` repairs.
    """
    asset = describe(name)
    folder = cache_folder() / name
    wrong = fetching.problems(folder, asset.digest, full=True)
    if _has_gguf(asset):
        converted = cache_folder() / (name + CONVERTED)
        found = fetching.problems(converted, _conversion_digest(asset), full=True)
        wrong += [f"converted to safetensors: {problem}" for problem in found]
    return wrong


# ── GGUF to safetensors, once ───────────────────────────────────────────────────────────────────


def _conversion_digest(asset: Asset) -> str:
    return hashlib.sha256(f"{asset.digest} conversion {CONVERSION}".encode()).hexdigest()


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' loading bars off stderr, which notebooks store."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the tokenizer cut every digit off before it splits words, as the model was trained.

    transformers converts a GGUF's "smollm" tokenizer to a plain byte-level one, in which a digit
    keeps the blank or newline before it, and "\\n\\n1." becomes other tokens than in training.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF decoder as a folder that transformers loads: float32 weights, tokenizer.

    The weights are the dequantized ones, bit for bit; tied embeddings are stored once.
    """
    import gguf as gguf_format
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"gguf_file": gguf.name, "local_files_only": True}
    # transformers' bar of the dequantization goes to stderr whatever its settings are.
    with _without_bars(), redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            **source,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        pre = gguf_format.GGUFReader(gguf).get_field("tokenizer.ggml.pre")
        if pre is not None and pre.contents() == "smollm":
            _split_digits(tokenizer)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _converted(name: str, progress: Progress | None = None, *, verify: bool = False) -> Path:
    """Return the folder of an asset's converted model; convert it if that has not been done."""
    asset = describe(name)
    _note_use(name)
    size = next(m.size for m in asset.members if m.name.endswith(".gguf"))

    def build(scratch: Path, report: fetching.Report) -> None:
        gguf = gguf_path(name)
        report("convert", 0, size)
        _convert(gguf, scratch)
        report("convert", size, size)

    with _reporting(name, progress) as report:
        return fetching.install(
            cache_folder(), name + CONVERTED, _conversion_digest(asset), build, report, full=verify
        )


def gguf_path(model: str | Path = "smollm2") -> Path:
    """Return the GGUF file of a packaged decoder, of a folder that holds one, or the file itself.

    Raises AssetError when there is none, or more than one to choose from.
    """
    if str(model) in _catalogue():
        folder = fetch(str(model))
    elif (path := Path(model).expanduser()).suffix == ".gguf" and path.is_file():
        return path
    else:
        folder = path
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    if len(files) != 1:
        have = f"the folder has {len(files)}" if folder.is_dir() else "there is no such file"
        raise AssetError(
            f"llama.cpp needs one GGUF file and {str(model)!r} does not name one ({have}); give "
            f"the path of a .gguf file, or one of {', '.join(_with_role('decoder'))}"
        )
    return files[0]


# ── models ──────────────────────────────────────────────────────────────────────────────────────


def _with_role(role: str) -> list[str]:
    return [asset.name for asset in _catalogue().values() if asset.role == role]


def _model_folder(model: str, role: str) -> tuple[str, bool]:
    """Return what transformers should load, and whether it is local."""
    if model in _with_role(role):
        folder = _converted(model) if _has_gguf(describe(model)) else fetch(model)
        return str(folder), True
    if model in _catalogue():
        raise AssetError(
            f"{model!r} is not a packaged {role}; the course has {', '.join(_with_role(role))}, "
            "and a folder or a hub id works too"
        )
    folder = Path(model).expanduser()
    return (str(folder), True) if folder.is_dir() else (model, False)


def _load(auto: str, model: str, role: str, dtype: Any, device: Any) -> Loaded:
    """Load a model in eval mode without gradients, and its tokenizer."""
    source, local = _model_folder(model, role)
    import torch
    import transformers

    arguments = {"local_files_only": local}
    try:
        with _without_bars():
            net = getattr(transformers, auto).from_pretrained(
                source, dtype=dtype or torch.float32, use_safetensors=True, **arguments
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **arguments)
    except (OSError, ValueError) as error:
        what = str(error).strip().splitlines()[0]
        raise AssetError(
            f"the {role} {model!r} could not be loaded ({what}); use the packaged "
            f"{', '.join(_with_role(role))}, a folder with config.json and safetensors, or a hub "
            "id (owner/name) with a network and without HF_HUB_OFFLINE"
        ) from error
    return net.eval().requires_grad_(False).to(device), tokenizer


def load_decoder(
    model: str | Path = "smollm2",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Loaded:
    """Return (causal language model, tokenizer): eval mode, no gradients, float32 unless `dtype`.

    `model` is the name of a packaged decoder, a folder that transformers can load, or a hub id.
    Raises AssetError when it can't be had.
    """
    return _load("AutoModelForCausalLM", str(model), "decoder", dtype, device)


def load_encoder(
    model: str | Path = "minilm",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Loaded:
    """Return (encoder without a head, tokenizer): eval mode, no gradients, float32 unless `dtype`.

    `model` is the name of a packaged encoder, a folder that transformers can load, or a hub id.
    Raises AssetError when it can't be had.
    """
    return _load("AutoModel", str(model), "encoder", dtype, device)


# ── the course's own checkpoints ────────────────────────────────────────────────────────────────


def checkpoint_folder(name: str) -> Path:
    """Return the folder of a checkpoint that the course trained: weights and a card.

    Raises AssetError, with the command that trains it, when it is not there.
    """
    folder = data_folder() / "checkpoints" / name
    if not (folder / "model.safetensors").is_file():
        raise AssetError(
            f"there is no checkpoint {name!r} in {folder.parent}; restore it from the repository, "
            f"or train it with `course train {name}`"
        )
    return folder


# ── data ────────────────────────────────────────────────────────────────────────────────────────


class Rated(NamedTuple):
    """A short text and the mean of its human ratings, from −4 (negative) to 4 (positive)."""

    id: str
    rating: float
    text: str


SENTIMENT_DOMAINS = {
    "tweets": "tweets_GroundTruth.txt",
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}


def _resolved(text: str) -> str:
    """Return the text without HTML entities, of which some in the files are escaped twice."""
    for _ in range(2):
        # Entities with their semicolon only: html.unescape alone turns "R&notes" into "R¬es".
        text = re.sub(r"&#?\w+;", lambda match: html.unescape(match[0]), text)
    return text


def load_sentiment(domain: str = "tweets") -> list[Rated]:
    """Return the rated texts of one domain: tweets, movies, products or editorials.

    HTML entities are resolved. Raises ValueError for another domain.
    Source: Hutto and Gilbert (2014).
    """
    if domain not in SENTIMENT_DOMAINS:
        raise ValueError(f"domain is {domain!r}; it must be one of {', '.join(SENTIMENT_DOMAINS)}")
    text = (fetch("sentiment") / SENTIMENT_DOMAINS[domain]).read_text(encoding="utf-8")
    # Not splitlines(): a text may hold the odd control character that it takes for a line's end.
    rows = (line.split("\t") for line in text.split("\n") if line)
    return [Rated(id, float(rating), _resolved(words)) for id, rating, words in rows]


def load_cmudict() -> dict[str, list[list[str]]]:
    """Return word → its pronunciations, each a list of phonemes, vowels with stress 0, 1 or 2.

    Words are in lower case; the variants, marked "word(2)" in the file, follow in its order.
    """
    dictionary: dict[str, list[list[str]]] = {}
    text = (fetch("cmudict") / "cmudict.dict").read_text(encoding="utf-8")
    for line in text.splitlines():
        entry, _, _comment = line.partition(" #")
        word, *phonemes = entry.split()
        word = re.sub(r"\(\d+\)$", "", word)
        dictionary.setdefault(word, []).append(phonemes)
    return dictionary


def _body(text: str) -> str:
    """Return a play or poem without its title lines and closing line, with one last newline."""
    _, _, body = text.partition("by William Shakespeare\n")
    return re.sub(r"\s+THE END$", "", body.strip()) + "\n"


def load_shakespeare() -> dict[str, str]:
    """Return title → text of Shakespeare's 37 plays, then of his 5 books of poems.

    A play begins with its list of persons. The lines of title and author at the head, and
    "THE END" where an edition has it, are not part of the text.
    """
    folder = fetch("shakespeare")
    return {
        member.title: _body((folder / member.name).read_text(encoding="ascii"))
        for member in describe("shakespeare").members
    }


class PlayQuestion(NamedTuple):
    """A question about a line in one of Shakespeare's plays, with its answer and the line's place.

    `form` is "exact" (the line is quoted) or "paraphrase" (said again in modern English); both
    questions about a line share `line`. `kind` says what is asked for: its "speaker", "addressee"
    or "play". In the text of the play the line stands at `start` to `end`, its speaker's name at
    `speech`. `accepted` are the right answers, `choices` all speakers of the play (or all plays).
    """

    id: str
    line: str
    form: str
    kind: str
    question: str
    answer: str
    accepted: tuple[str, ...]
    play: str
    speaker: str
    quote: str
    speech: int
    start: int
    end: int
    famous: bool
    choices: tuple[str, ...]


QUESTION_SPLITS = ("dev", "test")


def load_shakespeare_questions(split: str = "test") -> list[PlayQuestion]:
    """Return the course's questions over plays: "dev" (three plays) or "test" (five others).

    Raises ValueError for another split. Their card is data/shakespeare_questions/README.md.
    """
    import json

    rows = _authored("shakespeare_questions", split, splits=QUESTION_SPLITS)
    file = data_folder() / "shakespeare_questions" / "choices.json"
    choices = json.loads(file.read_text(encoding="utf-8"))
    questions = []
    for row in rows:
        among = choices["plays"] if row["kind"] == "play" else choices["casts"][row["play"]]
        row |= {"accepted": tuple(row["accepted"]), "choices": tuple(among)}
        questions.append(PlayQuestion(**row))
    return questions


AUTHORED_SPLITS = ("shots", "dev", "test")


def _authored(
    name: str, split: str, suffix: str = "", splits: tuple[str, ...] = AUTHORED_SPLITS
) -> list[dict[str, Any]]:
    """Return the rows of one split of a set that the course authored: data/<name>/README.md."""
    import json

    if split not in splits:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(splits)}")
    file = data_folder() / name / f"{split}{suffix}.jsonl"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise AssetError(
            f"{file} cannot be read ({error.strerror}); restore data/{name}"
        ) from error
    return [json.loads(line) for line in lines]


def load_word_problems(split: str = "test") -> list[dict[str, Any]]:
    """Return the word problems of a split: shots, dev or test; ValueError for another.

    Each has `question`, `answer`, `reasoning`, `program`, and says how hard it is.
    """
    return _authored("word_problems", split)


class ReactSet(NamedTuple):
    """Questions that need look-ups, each with its gold steps, and the pages: title → text."""

    questions: list[dict[str, Any]]
    pages: dict[str, str]


def load_react(split: str = "test") -> ReactSet:
    """Return the ReAct set of a split: shots, dev or test, a world of its own; ValueError else."""
    pages = _authored("react", split, "_pages")
    return ReactSet(_authored("react", split), {page["title"]: page["text"] for page in pages})


#: The symbols that the rows of the arrays `enc_emb` and `dec_emb` stand for, in order.
G2P_GRAPHEMES = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
G2P_PHONEMES = (
    *("<pad>", "<unk>", "<s>", "</s>", "AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1"),
    *("AH2", "AO0", "AO1", "AO2", "AW0", "AW1", "AW2", "AY0", "AY1", "AY2", "B", "CH", "D", "DH"),
    *("EH0", "EH1", "EH2", "ER0", "ER1", "ER2", "EY0", "EY1", "EY2", "F", "G", "HH", "IH0", "IH1"),
    *("IH2", "IY0", "IY1", "IY2", "JH", "K", "L", "M", "N", "NG", "OW0", "OW1", "OW2", "OY0"),
    *("OY1", "OY2", "P", "R", "S", "SH", "T", "TH", "UH0", "UH1", "UH2", "UW", "UW0", "UW1"),
    *("UW2", "V", "W", "Y", "Z", "ZH"),
)


def load_g2p() -> dict[str, np.ndarray]:
    """Return the float32 weights of the spelling-to-phonemes network, two GRUs of width 256.

    `enc_*` and `dec_*`: emb (symbols, 256), w_ih and w_hh (768, 256), b_ih and b_hh (768,), gates
    in PyTorch's order; `fc_w` (phonemes, 256), `fc_b`. G2P_GRAPHEMES and G2P_PHONEMES name the
    symbols. It was trained on nearly all of CMUdict: there its score is a training score.
    """
    import numpy as np

    with np.load(fetch("g2p") / "checkpoint20.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
