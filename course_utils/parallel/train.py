"""Fine-tuning a decoder on real text on many ranks: an entry point for torchrun. Notebook 05.

    torchrun --nproc-per-node 2 -m course_utils.parallel.train --strategy zero3 --model smollm2

Every rank runs this file. One JSON line a step tells the loss, tokens per second, bytes held and
sent; with `--checkpoints FOLDER` a run that was killed goes on where it stopped, to the last bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.parallel import checkpoints, strategies
from course_utils.parallel.data_parallel import rank_indices, token_mean
from course_utils.parallel.strategies import STRATEGIES, Strategy
from course_utils.training import TrainingDiverged

PADDING = -1  # where a row has no token
DTYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}

# ── data: rows of tokens, in an order that depends on the step alone ──────────────────────────────


def rows_of(ids: Tensor, length: int) -> Tensor:
    """ids (n,) -> rows (R, length + 1): each begins with the token that ends the one before.

    Of a row's tokens all but the first are to be guessed. The last row is filled with −1.

    >>> rows_of(torch.arange(6), length=3).tolist()
    [[0, 1, 2, 3], [3, 4, 5, -1]]
    """
    if length < 1 or len(ids) < 2:
        raise ValueError(
            f"length is {length} and there are {len(ids)} tokens; a row guesses one at least, from "
            "one before it: give a longer text"
        )
    n_rows = -(-(len(ids) - 1) // length)
    padded = F.pad(ids, (0, n_rows * length + 1 - len(ids)), value=PADDING)
    return padded.unfold(0, length + 1, length).contiguous()


def batch_at(rows: Tensor, step: int, batch_size: int, seed: int) -> Tensor:
    """This rank's rows (up to batch_size, T + 1) at a step, whatever went before.

    Each pass over the rows has an order of its own. Its last batch may be smaller, on all ranks
    alike. Rows that fill up the ranks' shares come twice in a pass, as `DistributedSampler` has it.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    each = -(-len(rows) // world_size)
    epoch, at = divmod(step, -(-each // batch_size))
    order = rank_indices(len(rows), rank, world_size, seed=seed, epoch=epoch)
    return rows[order[at * batch_size : (at + 1) * batch_size]]


def loss_sum(model: Callable[[Tensor], Tensor], batch: Tensor) -> tuple[Tensor, int]:
    """batch (B, T + 1) -> the sum of its tokens' losses in nats, and how many there are."""
    given, wanted = batch[:, :-1].clamp(min=0), batch[:, 1:]
    logits = model(given).float()
    total = F.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), ignore_index=PADDING, reduction="sum"
    )
    return total, int((wanted != PADDING).sum())


# ── the run ───────────────────────────────────────────────────────────────────────────────────────


def run(
    module: Decoder,
    rows: Tensor,
    *,
    strategy: str,
    steps: int,
    batch_size: int = 4,
    accumulate: int = 1,
    lr: float = 1e-4,
    warmup: int = 0,
    dropout: float = 0.0,
    seed: int = 0,
    compute_dtype: torch.dtype | None = None,
    shard_ranks: int | None = None,
    prefetch: bool = False,
    folder: str | Path | None = None,
    every: int = 10,
    fresh: bool = False,
    tell: Callable[[dict[str, Any]], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """Train up to `steps` AdamW steps, from the last checkpoint in `folder` on -> a line a step.

    All ranks call it, with the same model and the same rows (R, T + 1) of `rows_of`. A step is
    `accumulate` batches of `batch_size` rows on each rank, averaged over the tokens of all.
    `dropout` acts on the embedding. `tell` is called with each line, on rank 0.
    Raises TrainingDiverged on all ranks where the loss is not finite, before that step is taken.
    """
    settings = dict(rows=list(rows.shape), batch_size=batch_size, accumulate=accumulate, lr=lr)
    settings |= dict(warmup=warmup, dropout=dropout, seed=seed, dtype=str(compute_dtype))
    module.train()
    module.token_embedding.register_forward_hook(
        lambda layer, _, out: F.dropout(out, dropout, training=layer.training)
    )
    own = strategies.build(
        strategy,
        module,
        lambda p: torch.optim.AdamW(p, lr=lr),
        compute_dtype,
        shard_ranks,
        prefetch,
    )
    torch.manual_seed(1000 * seed + dist.get_rank())  # a state of its own on each rank
    first = 0 if fresh else _go_on(own, folder, settings)
    lines: list[dict[str, Any]] = []
    passes = 0
    for step in range(first, steps):
        set_rate(own.optimizer, lr, warmup, step)
        numbers = range(step * accumulate, (step + 1) * accumulate)
        batches = [batch_at(rows, number, batch_size, seed) for number in numbers]
        with _remedy_for_memory(strategy):
            sent, line = own.sent(passes), take_step(own, batches, step)
        passes += accumulate
        lines.append(line | {"sent": own.sent(passes) - sent})
        if dist.get_rank() == 0:
            tell(lines[-1])
        if folder is not None and ((step + 1) % every == 0 or step + 1 == steps):
            strategies.save(own, folder, step + 1, {"settings": settings})
    return lines


def take_step(own: Strategy, batches: list[Tensor], step: int) -> dict[str, Any]:
    """Loss, backward and the optimizer's step over micro-batches -> what there is to tell."""
    start = time.perf_counter()
    device = next(own.model.parameters()).device
    n = sum(int((batch[:, 1:] != PADDING).sum()) for batch in batches)
    loss = torch.zeros((), dtype=torch.float64)
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with contextlib.nullcontext() if last else own.gathering():
            share = token_mean(loss_sum(own.model, batch.to(device))[0], n)
            share.backward()
        loss += share.detach().double().cpu()
    n_tokens = torch.tensor(n)
    for x in (loss, n_tokens):
        dist.all_reduce(x)
    mean = loss.item() / dist.get_world_size()  # as the gradients are averaged
    if not torch.isfinite(loss):
        raise TrainingDiverged(
            f"the loss became {mean} at step {step}; lower --lr, or use bfloat16 for float16"
        )
    held = own.held()
    own.step()
    seconds = time.perf_counter() - start
    return {
        "step": step,
        "loss": mean,
        "tokens_per_s": round(n_tokens.item() / seconds, 1),
        "held": {name: int(x) for name, x in held._asdict().items()},
    }


def set_rate(optimizer: torch.optim.Optimizer, lr: float, warmup: int, step: int) -> None:
    """The learning rate of a step: up in a line over `warmup` steps, then `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * min(1.0, (step + 1) / (warmup + 1))


def _go_on(own: Strategy, folder: str | Path | None, settings: dict[str, Any]) -> int:
    """The step to begin with: after that of the last checkpoint, which is loaded, or 0."""
    path = None if folder is None else checkpoints.latest(folder)
    if path is None:
        return 0
    before = checkpoints.notes_of(path)["settings"]
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"{name} is {value} here and {before.get(name)} in {path}; go on with the settings "
                "the run began with, or begin anew with --fresh"
            )
    return strategies.restore(own, path)["step"]


@contextlib.contextmanager
def _remedy_for_memory(strategy: str) -> Iterator[None]:
    """Add to an error of memory what there is to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            error.add_note(
                f"rank {dist.get_rank()} of {dist.get_world_size()} ran out of memory under "
                f"{strategy}: lower --batch-size or --length, accumulate instead, or shard more "
                "(zero3, fsdp)"
            )
        raise


# ── the entry point ───────────────────────────────────────────────────────────────────────────────


def begin() -> torch.device:
    """Join the other ranks, with gloo between CPUs and NCCL between CUDA devices -> this one's.

    Without torchrun it is one rank alone.
    """
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", own_device()), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        _meet(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if dist.get_rank() == 0 and device.type == "cpu" and here > cores():
        click.echo(f"{here} ranks on {cores()} cores take turns: steps take longer", err=True)
    return device


def _meet(backend: str) -> None:
    """Join the ranks that torchrun has started."""
    try:
        dist.init_process_group(backend)
    except dist.DistNetworkError as error:
        address = ":".join(os.environ.get(f"MASTER_{part}", "?") for part in ("ADDR", "PORT"))
        error.add_note(
            f"rank {os.environ['RANK']} could not meet the others at {address}: where the port is "
            "in use give torchrun another --master-port, or --standalone on one machine; where "
            "nobody listens start the first machine"
        )
        raise


def cores() -> int:
    """How many this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def own_device() -> int:
    """The number of this rank's CUDA device on its machine."""
    local, devices = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= devices:
        raise ValueError(
            f"LOCAL_RANK is {local} and there are {devices} CUDA devices; start a rank for each, "
            "or train on the CPU with CUDA_VISIBLE_DEVICES= (empty)"
        )
    return local


def load(model: str, text: str | None, length: int, seed: int) -> tuple[Decoder, Tensor]:
    """A decoder and rows (R, length + 1) of a text in its tokens.

    `model` is "tiny", which reads bytes and has learnt nothing, or what `models.load_decoder`
    takes. `text` is a file in UTF-8, or None for Shakespeare's works.
    """
    words = read(text)
    if model == "tiny":
        torch.manual_seed(seed)
        decoder = Decoder(DecoderConfig(256, d_model=32, n_heads=4, n_layers=2, d_ff=64))
        return decoder, rows_of(as_bytes(words), length)
    from course_utils.architectures.pretrained import llama_config, load_llama_weights
    from course_utils.models import load_decoder

    theirs, tokenizer = load_decoder(model)
    decoder = Decoder(llama_config(theirs.config.to_dict()))
    load_llama_weights(decoder, theirs.state_dict())
    return decoder, rows_of(torch.tensor(tokenizer(words, verbose=False).input_ids), length)


def as_bytes(text: str) -> Tensor:
    """Its bytes in UTF-8 as ids.

    >>> as_bytes("aß").tolist()
    [97, 195, 159]
    """
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def read(text: str | None) -> str:
    """A file's text, or Shakespeare's plays and poems, one after another."""
    if text is not None:
        return Path(text).read_text(encoding="utf-8")
    from course_utils.assets.catalogue import describe
    from course_utils.assets.fetching import fetch

    asset = describe("shakespeare")
    folder = fetch(asset)
    return "".join((folder / m.name).read_text(encoding="ascii") for m in asset.members)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--strategy", type=click.Choice(STRATEGIES), required=True)
@click.option(
    "--model", default="smollm2", help='A decoder, or "tiny": small, on bytes, untrained.'
)
@click.option("--text", type=click.Path(exists=True, dir_okay=False), help="A file in UTF-8.")
@click.option("--steps", type=click.IntRange(min=1), default=20)
@click.option("--batch-size", type=click.IntRange(min=1), default=4, help="Rows a rank.")
@click.option("--length", type=click.IntRange(min=1), default=128, help="Tokens a row.")
@click.option("--accumulate", type=click.IntRange(min=1), default=1, help="Batches a step.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=1e-4)
@click.option("--warmup", type=click.IntRange(min=0), default=0, help="Steps.")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.0)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32")
@click.option("--seed", type=int, default=0)
@click.option("--shard-ranks", type=click.IntRange(min=1), help="Under hsdp: ranks a model.")
@click.option("--prefetch", is_flag=True, help="Gather the next block while one computes.")
@click.option("--checkpoints", "folder", type=click.Path(file_okay=False), help="A shared folder.")
@click.option("--every", type=click.IntRange(min=1), default=10, help="Steps between checkpoints.")
@click.option("--fresh", is_flag=True, help="Begin anew although there is a checkpoint.")
@click.option("--history", type=click.Path(dir_okay=False), help="A file for the lines, too.")
@record
def main(
    model: str,
    text: str | None,
    length: int,
    seed: int,
    dtype: str,
    history: str | None,
    **options: Any,
) -> None:
    """Fine-tune a decoder on Shakespeare's works, or on a text, under one of six strategies."""
    device = begin()
    try:
        decoder, rows = load(model, text, length, seed)
        run(
            decoder.to(device),
            rows,
            seed=seed,
            compute_dtype=DTYPES[dtype],
            tell=lambda line: _tell(line, history),
            **options,
        )
        dist.barrier()  # a rank that left now would close what others still read from
    finally:
        dist.destroy_process_group()


def _tell(line: dict[str, Any], history: str | None) -> None:
    text = json.dumps(line)
    click.echo(text)
    sys.stdout.flush()
    if history is not None:
        with Path(history).open("a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
