"""The strong encoder–decoder: from spelling to sound, learned in an hour or two. Notebook 03.

`course train g2p-transformer` writes data/checkpoints/g2p-transformer: float16 weights, and a card
with the scores, the seed, the hardware and the minutes; `load` gives the model. What a score
means is said in `tasks.pronunciation`. The recipe is that of Vaswani et al. 2017 in small (label
smoothing and dropout of 0.1, a learning rate that rises and falls) on T5's blocks, with sinusoidal
positions (without them, at width 128, the loss after 300 steps is 1.55 nats instead of 0.80).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils import models, training
from course_utils.architectures.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from course_utils.architectures.layers import copy_weights
from course_utils.architectures.objectives import IGNORED
from course_utils.assets import catalogue
from course_utils.metrics import ErrorRates
from course_utils.profiles import device_for, for_profile, seed_everything, threads
from course_utils.tasks import pronunciation
from course_utils.tasks.pronunciation import SYMBOLS, Batch, Entry

NAME = "g2p-transformer"
WEIGHTS = "model.safetensors"
SMOOTHING = 0.1

CARD = """\
# g2p-transformer

An encoder–decoder (`EncoderDecoder` in `course_utils.architectures`) that writes the phonemes of an
English word. Trained by the course on the CMU Pronouncing Dictionary (BSD-2-Clause); this card is
written by the recipe too, `course train g2p-transformer`. Licence: Apache-2.0, as the course.

| words | number | PER | WER |
|---|---|---|---|
{rows}

PER is the share of wrong phonemes, WER that of words with any error, both by greedy decoding, with
the weights as they are stored. **Conditions**: stress dropped (39 phonemes); words of a–z and
apostrophes, split by word, possessives on their base word's side; scored against the nearest of a
word's pronunciations. Inflections of a test word ("walked" beside "walk") may be in training.
The dev words were only watched: nothing was chosen by them.

| | |
|---|---|
| weights | {size:.1f} MB of float16, in `model.safetensors` |
| sizes | {shape} |
| training | {train_words:,} words, all their pronunciations, {epochs} epochs |
| run | profile {profile}, seed {seed}, {minutes} minutes on {device}, {threads} thread(s) |
| torch | {torch} |

**Published beside it**, WER without stress, in the README of CMUSphinx's g2p-seq2seq: a transformer
of two layers and width 256 has 20.2 % on the PRONALSYL 2007 split of CMUdict, and about 31 % on the
latest CMUdict; a finite-state baseline (Phonetisaurus) 24.4 % and 33.9 %. The edition and the split
alone move the figure by ten points, so none of these is a comparison under equal conditions.
"""


def budget_for(profile: str) -> SimpleNamespace:
    """Sizes and length of the training in one profile."""
    return for_profile(
        profile,
        cpu=dict(d_model=192, d_ff=768, layers=(3, 2), epochs=12, batch=128, lr=1e-3, dropout=0.1),
        gpu=dict(d_model=256, d_ff=1024, layers=(4, 3), epochs=80, batch=512, lr=2e-3, dropout=0.2),
    )


def build(budget: SimpleNamespace) -> EncoderDecoder:
    """The untrained model."""
    encoder, decoder = budget.layers
    config = EncoderDecoderConfig(
        vocab_size=len(SYMBOLS),
        d_model=budget.d_model,
        n_heads=4,
        n_layers=encoder,
        n_decoder_layers=decoder,
        d_ff=budget.d_ff,
        gated=False,
        sinusoidal=True,
        dropout=budget.dropout,
    )
    return EncoderDecoder(config)


def loss_of(model: EncoderDecoder, batch: Batch) -> Tensor:
    """Cross-entropy in nats with label smoothing (Szegedy et al. 2016)."""
    logits = model(batch.source, batch.target_in, batch.mask)
    return F.cross_entropy(
        logits.flatten(0, 1).float(),
        batch.labels.flatten(),
        ignore_index=IGNORED,
        label_smoothing=SMOOTHING,
    )


def fit(
    model: EncoderDecoder, train: list[Entry], dev: list[Entry], budget: SimpleNamespace, seed: int
) -> None:
    """Train in place, an epoch at a time, and print the dev score after each."""
    device = model.token_embedding.weight.device
    steps = sum(1 for _ in pronunciation.batches(train, budget.batch))
    optimizer = torch.optim.AdamW(
        model.parameters(), budget.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, budget.lr, total_steps=budget.epochs * steps, pct_start=0.04
    )

    def moved(epoch: int) -> Iterator[Batch]:
        for batch in pronunciation.batches(train, budget.batch, seed=seed * 1000 + epoch):
            yield Batch(*(tensor.to(device) for tensor in batch))

    for epoch in range(budget.epochs):
        model.train()
        training.train(
            lambda batch: loss_of(model, batch),
            moved(epoch),
            optimizer,
            steps=steps,
            max_norm=1.0,
            scheduler=scheduler,
            label=f"epoch {epoch + 1} of {budget.epochs}",
        )
        rates = evaluate(model, dev)
        print(
            f"    dev: PER {rates.symbol:.4f} WER {rates.word:.4f} of {rates.n} words", flush=True
        )


def evaluate(model: EncoderDecoder, words: list[Entry]) -> ErrorRates:
    """Greedy decoding, scored against the nearest accepted pronunciation."""
    return pronunciation.score(pronunciation.writer(model.eval()), words)


def train(profile: str = "cpu", seed: int = 0, out: Path | None = None) -> Path:
    """Train, score on the held-out words, and write weights and card; return their folder."""
    budget, device = budget_for(profile), device_for(profile)
    torch.set_num_threads(threads())
    seed_everything(seed)
    parts = pronunciation.split(pronunciation.entries(pronunciation.load_cmudict()))
    model = build(budget).to(device)
    start = time.perf_counter()
    fit(model, parts[0], parts[1], budget, seed)
    minutes = (time.perf_counter() - start) / 60
    model.half().float()  # what is stored is what is scored
    facts = {
        "profile": profile,
        "seed": seed,
        "minutes": round(minutes, 1),
        "threads": threads(),
        "device": str(device),
        "torch": torch.__version__,
        "epochs": budget.epochs,
        **scores(model, *parts),
    }
    return save(model, facts, out)


def scores(
    model: EncoderDecoder, train: list[Entry], dev: list[Entry], test: list[Entry]
) -> dict[str, float | int]:
    """Error rates on dev, on test, and on the test words without an apostrophe."""
    plain = [entry for entry in test if "'" not in entry.word]
    parts = {"dev": dev, "test": test, "test_without_possessives": plain}
    facts: dict[str, float | int] = {"train_words": len(train)}
    for name, words in parts.items():
        rates = evaluate(model, words)
        facts |= {f"{name}_words": rates.n}
        facts |= {f"{name}_per": round(rates.symbol, 4), f"{name}_wer": round(rates.word, 4)}
    return facts


# ── weights and card ──────────────────────────────────────────────────────────────────────────────


def save(model: EncoderDecoder, facts: dict, out: Path | None = None) -> Path:
    """Write model.safetensors (float16; configuration and facts in its header) and README.md."""
    from safetensors.torch import save_file

    folder = Path(out) if out else catalogue.data_folder() / "checkpoints" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().half().cpu().contiguous() for name, p in model.named_parameters()}
    header = {"config": json.dumps(asdict(model.config)), "facts": json.dumps(facts)}
    save_file(tensors, folder / WEIGHTS, header)
    write_card(folder)
    return folder


def facts_of(folder: Path) -> tuple[EncoderDecoderConfig, dict]:
    """Configuration and facts that stand in a checkpoint's header."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as file:
        header = file.metadata()
    return EncoderDecoderConfig(**json.loads(header["config"])), json.loads(header["facts"])


def load(folder: Path | None = None, device: torch.device | str = "cpu") -> EncoderDecoder:
    """The trained model: eval mode, no gradients, float32. AssetError when it is not there."""
    from safetensors.torch import load_file

    folder = folder or models.checkpoint_folder(NAME)
    model = EncoderDecoder(facts_of(folder)[0])
    copy_weights(
        model, load_file(folder / WEIGHTS), {p: p for p, _ in model.named_parameters()}, NAME
    )
    return model.eval().requires_grad_(False).to(device)


def write_card(folder: Path) -> None:
    """Write README.md from what the weights' header says."""
    config, facts = facts_of(folder)
    rows = [
        f"| {name.replace('_', ' ')} | {facts[f'{name}_words']:,} | {facts[f'{name}_per']:.2%} "
        f"| {facts[f'{name}_wer']:.2%} |"
        for name in ("dev", "test", "test_without_possessives")
    ]
    size = (folder / WEIGHTS).stat().st_size / 1e6
    shape = ", ".join(f"{name} {value}" for name, value in asdict(config).items())
    text = CARD.format(rows="\n".join(rows), size=size, shape=shape, **facts)
    (folder / "README.md").write_text(text, encoding="utf-8")
