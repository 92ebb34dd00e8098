"""The entry point: six strategies against one process, runs that are killed and go on."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from parallel_inputs import on_ranks

from course_utils.parallel import checkpoints, sharding, strategies, train
from course_utils.parallel.data_parallel import rank_indices
from course_utils.parallel.launch import RankError
from course_utils.parallel.strategies import STRATEGIES

TEXT = train.read(None)[:700]  # 44 rows of 16 tokens, the last of them not full
LENGTH, BATCH, LR = 16, 3, 1e-2


def text_file(folder):
    file = folder / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return str(file)


def ran(file, **options):
    """A run of a new tiny decoder -> its lines, and what its parameters became."""
    module, rows = train.load("tiny", file, LENGTH, seed=0)
    options = {"batch_size": BATCH, "lr": LR, **options}
    return train.run(module, rows, **options)


def losses(lines):
    return [line["loss"] for line in lines]


def everything(path):
    """All tensors of a checkpoint, whole, read by one process."""
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    state = {k: torch.empty(m.size, dtype=m.properties.dtype) for k, m in stored.items()}
    with warnings.catch_warnings(action="ignore"):  # it says that this is one process
        dcp.load(state, checkpoint_id=path, no_dist=True)
    return state


def assert_same(path, other):
    a, b = everything(path), everything(other)
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert torch.equal(x, b[name]), f"{name}: {(x.double() - b[name]).abs().max().item()}"


# ── data ──────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(2, 60), st.integers(1, 20))
def test_every_token_but_the_first_is_guessed_once(n, length):
    """From the token before it."""
    rows = train.rows_of(torch.arange(n), length)
    assert rows.shape[1] == length + 1
    pairs = [(a, b) for row in rows.tolist() for a, b in itertools.pairwise(row) if b >= 0]
    assert pairs == [(i - 1, i) for i in range(1, n)]


def test_ranks_share_the_rows_and_their_last_batch_may_be_smaller():
    """11 rows, 2 ranks with 6 each, in batches of 4: 4 and 2, then a new order."""

    def epochs():
        rows = torch.arange(11).view(-1, 1)
        return [train.batch_at(rows, step, 4, seed=1).flatten().tolist() for step in range(4)]

    by_rank = on_ranks(epochs, world_size=2)
    for batches in by_rank:
        assert [len(batch) for batch in batches] == [4, 2, 4, 2]
    for epoch in (0, 1):
        read = [row for batches in by_rank for b in batches[2 * epoch :][:2] for row in b]
        assert sorted(set(read)) == list(range(11))
        assert len(read) == 12
    assert by_rank[0][:2] != by_rank[0][2:]


# ── the six against one process ───────────────────────────────────────────────────────────────────


def one_process(file, world_size, steps, batch=BATCH, lr=LR):
    """The batches of all ranks in one, the mean over their tokens, torch's AdamW -> losses."""
    module, rows = train.load("tiny", file, LENGTH, seed=0)
    optimizer, found = torch.optim.AdamW(module.parameters(), lr=lr), []
    each = -(-len(rows) // world_size)
    for step in range(steps):
        epoch, at = divmod(step, -(-each // batch))
        order = [rank_indices(len(rows), r, world_size, seed=0, epoch=epoch)
                 for r in range(world_size)]  # fmt: skip
        ids = rows[[i for part in order for i in part[at * batch : (at + 1) * batch]]]
        logits = module(ids[:, :-1].clamp(min=0)).flatten(0, 1)
        loss = F.cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


# Eight steps on two ranks are a pass over the 44 rows: the short row and a batch of one are in it.
EIGHT = {"steps": 8}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_process_with_all_batches(strategy, tmp_path):
    """Losses of a pass with a short row and a smaller last batch: the mean over tokens, not rows.

    fp32 in other orders: 1e-6 a step, which Adam's division enlarges to some 1e-5 in eight.
    """
    file, world_size = text_file(tmp_path), 4 if strategy == "hsdp" else 2
    by_rank = on_ranks(ran, file, strategy=strategy, **EIGHT, world_size=world_size)
    assert all(losses(lines) == losses(by_rank[0]) for lines in by_rank)
    expected = one_process(file, world_size, **EIGHT)
    assert losses(by_rank[0]) == pytest.approx(expected, abs=1e-4)
    assert expected[-1] < expected[0] - 0.5  # nats: it learns


def test_the_courses_own_are_equal_on_two_ranks(tmp_path):
    """A sum of two has one order: the same losses, to the last bit."""
    file = text_file(tmp_path)
    found = [
        losses(on_ranks(ran, file, strategy=name, **EIGHT, world_size=2)[0])
        for name in ("ddp", "zero1", "zero2", "zero3", "fsdp")
    ]
    options = {"strategy": "zero3", "prefetch": True, **EIGHT, "world_size": 2}
    found.append(losses(on_ranks(ran, file, **options)[0]))
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_rank_alone(strategy, tmp_path):
    file = text_file(tmp_path)
    (lines,) = on_ranks(ran, file, strategy=strategy, steps=3, world_size=1)
    assert losses(lines) == pytest.approx(one_process(file, 1, 3), abs=1e-5)
    assert all(line["sent"] == 0 for line in lines)


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero3", "fsdp"])
def test_accumulated_batches_are_one_large_batch(strategy, tmp_path):
    """2 × 1 rows are 2 rows: the same sums, in fp32, added in another order."""
    file = text_file(tmp_path)
    options = {"strategy": strategy, "steps": 4, "world_size": 2}
    large = losses(on_ranks(ran, file, batch_size=2, **options)[0])
    small = losses(on_ranks(ran, file, batch_size=1, accumulate=2, **options)[0])
    assert small == pytest.approx(large, abs=1e-4)


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp", "hsdp"])
def test_half_precision(strategy, tmp_path):
    """bfloat16 has 8 bits: losses near 5 agree to 0.1."""
    file = text_file(tmp_path)
    options = {"strategy": strategy, "steps": 4, "world_size": 2}
    half = losses(on_ranks(ran, file, compute_dtype=torch.bfloat16, **options)[0])
    assert half == pytest.approx(one_process(file, 2, 4), abs=0.1)
    assert half != losses(on_ranks(ran, file, **options)[0])


def test_warm_up_by_hand():
    """lr 8, 3 steps of warm-up: 2, 4, 6, then 8."""
    optimizer, found = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0), []
    for step in range(5):
        train.set_rate(optimizer, 8.0, 3, step)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == [2, 4, 6, 8, 8]


def test_hybrid_groups_are_neighbours():
    """Those of a machine share a model: much travels within, little between machines."""

    def ranks(shard_ranks):
        return [wire.ranks for wire in strategies.groups(shard_ranks)]

    found = [[[0, 1], [0, 2]], [[0, 1], [1, 3]], [[2, 3], [0, 2]], [[2, 3], [1, 3]]]
    assert on_ranks(ranks, 2, world_size=4) == on_ranks(ranks, None, world_size=4) == found
    assert on_ranks(ranks, None, world_size=3)[1] == [[0, 1, 2], [1]]


def test_bytes_held_and_sent(tmp_path):
    """By the formulas, but for the zeros at shards' ends: 16Ψ a rank, or 16Ψ/N; 2Ψ or 3Ψ sent."""
    file, n, psi = text_file(tmp_path), 2, 28_832
    module = train.load("tiny", file, LENGTH, 0)[0]
    assert sum(p.numel() for p in module.parameters()) == psi
    for stage, strategy in enumerate(("ddp", "zero1", "zero2", "zero3")):
        line = on_ranks(ran, file, strategy=strategy, steps=2, world_size=n)[0][-1]
        expected = sharding.state_bytes(psi, n, stage, sharding.FP32_ADAM)
        assert list(line["held"].values()) == pytest.approx(list(expected), rel=1e-3)
        sent = sharding.traffic_bytes(psi, n, stage)
        if stage == 3:  # the embedding and the last norm are gathered once, not twice
            sent -= 4 * (256 * 32 + 32) * (n - 1) / n
        assert line["sent"] == pytest.approx(sent, rel=1e-3)
    line = on_ranks(ran, file, strategy="fsdp", steps=2, world_size=n)[0][-1]
    assert sum(line["held"].values()) == pytest.approx(16 * psi / n, rel=1e-3)
    assert line["sent"] == sharding.traffic_bytes(psi, n, 3)


# ── going on ──────────────────────────────────────────────────────────────────────────────────────


def in_two_parts(file, folder, **options):
    """Six steps at a stretch; then three, and in a new model the rest -> lines of both."""
    options = {"dropout": 0.1, "every": 3, **options}
    whole = ran(file, folder=f"{folder}/whole", steps=6, **options)
    ran(file, folder=f"{folder}/parts", steps=3, **options)
    return whole, ran(file, folder=f"{folder}/parts", steps=6, **options)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_goes_on_to_the_last_bit(strategy, tmp_path):
    """Weights, both moments, data, every rank's random state; for ddp the buckets too."""
    world_size = {"hsdp": 4, "ddp": 3}.get(strategy, 2)
    by_rank = on_ranks(
        in_two_parts, text_file(tmp_path), str(tmp_path), strategy=strategy, world_size=world_size
    )
    for whole, rest in by_rank:
        assert [line["step"] for line in rest] == [3, 4, 5]
        assert losses(rest) == losses(whole)[3:]
    assert_same(tmp_path / "whole" / "step-6", tmp_path / "parts" / "step-6")


def test_a_run_goes_on_with_fewer_ranks_and_another_stage(tmp_path):
    file, folder = text_file(tmp_path), str(tmp_path / "run")
    before = on_ranks(ran, file, strategy="zero3", steps=4, folder=folder, world_size=4)[0]
    after = on_ranks(ran, file, strategy="zero1", steps=8, folder=folder, world_size=2)[0]
    assert [line["step"] for line in after] == [4, 5, 6, 7]
    assert losses(after)[-1] < losses(before)[-1]
    again = on_ranks(ran, file, strategy="zero1", steps=1, folder=folder, fresh=True, world_size=2)
    assert again[0][0]["step"] == 0


SCRIPT = """
import os, signal
from course_utils.parallel import train

right = train.take_step

def take_step(own, batches, step):
    first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first_life and step == 5 and os.environ["RANK"] == os.environ["VICTIM"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return right(own, batches, step)

train.take_step = take_step
train.main()
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def torchrun(tmp_path, file, folder, strategy, nodes, victim, steps=8):
    """Agents, each with two ranks, one of which is killed at step 5 in its first life -> lines."""
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(SCRIPT))
    log, port = tmp_path / "log.jsonl", free_port()
    variables = {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # without it gloo hangs after a restart
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        "OMP_NUM_THREADS": "1",
        "VICTIM": str(victim),
    }
    options = f"""--strategy {strategy} --model tiny --text {file} --steps {steps} --length {LENGTH}
        --batch-size {BATCH} --lr {LR} --dropout 0.1 --checkpoints {folder} --every 3
        --history {log}"""
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes)),
                *("--node-rank", str(node), "--nproc-per-node", "2", "--max-restarts", "1"),
                *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"),
                *("--monitor-interval", "0.1", str(script), *options.split()),
            ],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(nodes)
    ]
    said = [agent.communicate(timeout=240)[0] for agent in agents]
    assert all(agent.returncode == 0 for agent in agents), "\n".join(said)
    return [json.loads(line) for line in log.read_text().splitlines()]


def killed_and_whole(tmp_path, strategy, nodes, victim):
    """Both checkpoints, after the lines were compared."""
    file, world_size = text_file(tmp_path), 2 * nodes
    options = {"strategy": strategy, "steps": 8, "dropout": 0.1, "every": 3}
    folder = str(tmp_path / "whole")
    whole = on_ranks(ran, file, folder=folder, world_size=world_size, limit=60, **options)[0]
    lines = torchrun(tmp_path, file, tmp_path / "killed", strategy, nodes, victim)
    # Killed at 5, gone on from 3.
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]
    assert losses(lines) == losses(whole[:5]) + losses(whole[3:])
    return tmp_path / "whole" / "step-8", tmp_path / "killed" / "step-8"


def test_a_killed_rank_is_restarted_and_the_run_goes_on_to_the_last_bit(tmp_path):
    """Under torchrun: SIGKILL at step 5, a checkpoint at 3; as a run that nobody killed."""
    assert_same(*killed_and_whole(tmp_path, "zero3", 1, victim=1))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_machines(strategy, tmp_path):
    """Two agents of torchrun with two ranks each stand for two; one of the second's is killed."""
    assert_same(*killed_and_whole(tmp_path, strategy, 2, victim=3))


# ── the command ───────────────────────────────────────────────────────────────────────────────────


def command(*arguments):
    return CliRunner().invoke(train.main, list(arguments))


def test_the_command_without_torchrun_is_one_rank(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("RANK", raising=False)
    log, file = tmp_path / "log.jsonl", text_file(tmp_path)
    options = (
        f"--strategy zero2 --model tiny --text {file} --steps 2 --length {LENGTH} --history {log}"
    )
    train.main(options.split(), standalone_mode=False)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert list(lines[0]) == ["step", "loss", "tokens_per_s", "held", "sent"]
    assert capfd.readouterr().out.splitlines() == log.read_text().splitlines()
    assert not dist.is_initialized()


def test_options_that_the_command_refuses():
    assert "'zero4' is not one of 'ddp', 'zero1'" in command("--strategy", "zero4").output
    assert "0 is not in the range x>=1" in command("--strategy", "ddp", "--steps", "0").output
    assert "Missing option '--strategy'" in command().output
    assert "does not exist" in command("--strategy", "ddp", "--text", "nowhere.txt").output


@pytest.mark.slow
def test_smollm2_learns_a_text(tmp_path):
    """The packaged model, two ranks, ZeRO-3: the loss of its own tokens falls within 4 steps."""
    file = tmp_path / "text.txt"
    file.write_text(TEXT)

    def body():
        module, rows = train.load("smollm2", str(file), 32, seed=0)
        return train.run(module, rows, strategy="zero3", steps=4, batch_size=2, lr=1e-4)

    first, *_, last = losses(on_ranks(body, world_size=2, limit=500)[0])
    assert last < first < 6


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def refused(tmp_path, world_size=1, **options):
    with pytest.raises(RankError) as caught:
        on_ranks(ran, text_file(tmp_path), **{"steps": 1, **options}, world_size=world_size)
    return str(caught.value)


def test_what_does_not_fit_together(tmp_path):
    assert "strategy is 'ddp2'; there are ddp, zero1" in refused(tmp_path, strategy="ddp2")
    said = refused(tmp_path, strategy="ddp", compute_dtype=torch.float16)
    assert "ddp computes in the model's own type; zero1 is the same with masters" in said
    said = refused(tmp_path, strategy="zero3", shard_ranks=2)
    assert "shard_ranks is 2, which is for hsdp alone, not for zero3" in said
    said = refused(tmp_path, strategy="fsdp", prefetch=True)
    assert "prefetch is for zero1 to zero3 and hsdp; fsdp overlaps by itself" in said
    said = refused(tmp_path, strategy="hsdp", shard_ranks=2, world_size=3)
    assert "shard_ranks is 2; it must divide the 3 ranks evenly" in said
    with pytest.raises(ValueError, match=r"there are 1 tokens; .* give a longer text"):
        train.rows_of(torch.zeros(1), 4)


def test_other_settings_than_the_run_began_with(tmp_path):
    folder = str(tmp_path / "run")
    on_ranks(ran, text_file(tmp_path), strategy="zero3", steps=1, folder=folder, world_size=1)
    said = refused(tmp_path, strategy="zero3", steps=2, folder=folder, lr=0.5)
    assert "lr is 0.5 here and 0.01 in" in said
    assert "begin anew with --fresh" in said


def test_a_loss_that_is_not_finite_ends_all_ranks_before_the_step(tmp_path):
    file, folder = text_file(tmp_path), str(tmp_path / "run")

    def body():
        module, rows = train.load("tiny", file, LENGTH, seed=0)
        right = train.loss_sum

        def broken(model, batch):
            total, n = right(model, batch)
            bad = dist.get_rank() == 1 and broken.calls == 2
            broken.calls += 1
            return (total * torch.nan if bad else total), n

        broken.calls, train.loss_sum = 0, broken
        try:
            with pytest.raises(train.TrainingDiverged) as caught:
                train.run(module, rows, strategy="zero3", steps=4, every=1, folder=folder)
        finally:
            train.loss_sum = right
        return str(caught.value)

    said = on_ranks(body, world_size=2)
    assert said == ["the loss became nan at step 2; lower --lr, or use bfloat16 for float16"] * 2
    assert checkpoints.latest(folder).name == "step-2"
    assert all(x.isfinite().all() for x in everything(checkpoints.latest(folder)).values())


def test_a_rank_that_runs_out_of_memory_says_what_to_do(tmp_path):
    resource, file = pytest.importorskip("resource"), text_file(tmp_path)

    def body():
        module, rows = train.load("tiny", file, LENGTH, seed=0)
        module.blocks[0].register_forward_hook(lambda *_: hungry())
        return train.run(module, rows, strategy="zero3", steps=2)

    def hungry():
        if dist.get_rank() == 1:
            resource.setrlimit(resource.RLIMIT_AS, (2**33, resource.RLIM_INFINITY))
            torch.ones(2**32)

    with pytest.raises(RankError) as caught:
        on_ranks(body, world_size=2)
    assert caught.value.rank == 1
    assert "rank 1 of 2 ran out of memory under zero3: lower --batch-size" in str(caught.value)


def test_more_ranks_than_cores_and_than_devices(monkeypatch, capsys):
    """On the CPU they take turns, which is said once; each needs a CUDA device of its own."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    train.begin()
    dist.destroy_process_group()
    assert f"1000 ranks on {train.cores()} cores take turns" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"LOCAL_RANK is 2 and there are 2 CUDA devices; start"):
        train.own_device()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert train.own_device() == 1


def test_a_port_in_use(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        variables = dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(dist.DistNetworkError, match="EADDRINUSE") as caught:
            train.begin()
    (said,) = caught.value.__notes__
    assert said.startswith(f"rank 0 could not meet the others at 127.0.0.1:{port}: where the port")


def test_a_layout_of_another_model(tmp_path):
    file = text_file(tmp_path)

    def body():
        module = train.load("tiny", file, LENGTH, 0)[0]
        model = strategies.build("ddp", module, lambda p: torch.optim.SGD(p, lr=1.0)).model
        assert model.layout is None
        model.take_layout([[0, 1], [1]])

    with pytest.raises(RankError, match=r"the layout \[\[0, 1\], \[1\]\] is not one of 20 par"):
        on_ranks(body, world_size=1)
