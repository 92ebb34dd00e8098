"""Checkpoints of sharded runs: the same to the bit, on other numbers of ranks, after a kill."""

from __future__ import annotations

import json
import os
import signal
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from parallel_inputs import on_ranks
from sharding_inputs import OPTIMIZERS, decoder, largest, loss_of, sharded
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from course_utils.parallel import checkpoints
from course_utils.parallel.collectives import Wire, all_gather, even_bounds
from course_utils.parallel.data_parallel import DataParallel
from course_utils.parallel.launch import RankError


def random_loss(model, step):
    """Words left out at random: without the random state a run goes on differently."""
    loss = loss_of(model, step, dist.get_rank())
    return loss * F.dropout(torch.ones(8), 0.5).mean()


def trained(model, steps):
    if 0 in steps:
        torch.manual_seed(100 + dist.get_rank())  # as in a run: every rank has a state of its own
    for step in steps:
        random_loss(model, step).backward()
        model.step()
    return model


def whole(model):
    """Parameters, and the optimizer's state by unit: all that must come back."""
    state = model.full_state()
    for i, unit in enumerate(model.units):
        for key, x in model.optimizer.state[unit.shard].items():
            flat = all_gather(x, unit.wire)[: unit.numel] if x.dim() else x
            state[f"{i}.{key}"] = flat.clone()
    return state


def saved(folder, optimizer="adam", **options):
    """Two steps on as many ranks as there are, and a checkpoint."""
    model = trained(sharded(decoder(), optimizer, **options), range(2))
    checkpoints.save(folder, 2, checkpoints.tensors_of(model), {"said": "two steps"})
    return whole(model)


def restored(folder, optimizer="adam", **options):
    """A new model, of other weights to begin with."""
    model = sharded(decoder(seed=7), optimizer, **options)
    notes = checkpoints.restore(checkpoints.latest(folder), model)
    return whole(model), notes


# ── the same again ────────────────────────────────────────────────────────────────────────────────

OTHER = [(4, 2), (2, 3), (1, 4), (3, 1)]


@pytest.mark.parametrize(("before", "after"), OTHER, ids=str)
def test_another_number_of_ranks(before, after, tmp_path):
    """Saved by N and loaded by M ranks, to the last bit; by other stages too."""
    expected = on_ranks(saved, tmp_path, world_size=before)[0]
    for stage in (3, 1) if after > 1 else (3,):
        for found, notes in on_ranks(restored, tmp_path, stage=stage, world_size=after):
            assert largest(found, expected) == 0
            assert notes == {"said": "two steps", "step": 2, "world_size": before}


def test_masters_come_back_in_fp32(tmp_path):
    """To a run in another type as well: what is saved are the masters."""
    half = {"compute_dtype": torch.float16}
    expected = on_ranks(saved, tmp_path, world_size=2, **half)[0]
    assert any((x != x.half()).any() for x in expected.values())
    for options in (half, {}):
        assert largest(on_ranks(restored, tmp_path, world_size=3, **options)[0][0], expected) == 0


def test_momentum_and_plain_sgd(tmp_path):
    for optimizer in ("momentum", "sgd"):
        expected = on_ranks(saved, tmp_path / optimizer, optimizer, world_size=2)[0]
        found = on_ranks(restored, tmp_path / optimizer, optimizer, world_size=3)[0][0]
        assert largest(found, expected) == 0


def continuation(folder, stage, **options):
    """Four steps at a stretch, and two, a checkpoint, a new model, two."""
    at_a_stretch = whole(trained(sharded(decoder(), stage=stage, **options), range(4)))
    saved(folder, stage=stage, **options)
    model = sharded(decoder(seed=7), stage=stage, **options)
    checkpoints.restore(checkpoints.latest(folder), model)
    return largest(whole(trained(model, range(2, 4))), at_a_stretch)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_continuation_is_exact(stage, tmp_path):
    """With every rank's random state, to the last bit."""
    assert on_ranks(continuation, tmp_path, stage, world_size=3) == [0.0] * 3


def test_a_continuation_in_half_precision_is_exact(tmp_path):
    options = {"compute_dtype": torch.bfloat16}
    assert on_ranks(continuation, tmp_path, 3, world_size=2, **options) == [0.0] * 2


def test_hybrid_shards_are_those_of_two_ranks(tmp_path):
    """Two groups of two ranks hold the same shards: they are saved once."""

    def hybrid(folder):
        rank = dist.get_rank()
        inner, across = Wire([rank // 2 * 2, rank // 2 * 2 + 1]), Wire([rank % 2, rank % 2 + 2])
        return saved(folder, wire=inner, replicas=across)

    expected = on_ranks(hybrid, tmp_path, world_size=4)[0]
    assert largest(on_ranks(restored, tmp_path, world_size=2)[0][0], expected) == 0
    stored = dcp.FileSystemReader(checkpoints.latest(tmp_path)).read_metadata()
    assert len(stored.state_dict_metadata["unit.0"].chunks) == 2


def beside(kind, folder, seed, load):
    """DataParallel, or torch's fully_shard, trained and saved, or made anew and restored."""
    module = model = decoder(seed=seed)
    if kind == "fully_shard":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for part in (*module.blocks, module):
            fully_shard(part, mesh=mesh)
    else:
        model = DataParallel(module)
    optimizer = OPTIMIZERS["adam"](module.parameters())
    if load:
        checkpoints.restore(checkpoints.latest(folder), module, optimizer)
    else:
        loss_of(model, 0, dist.get_rank()).backward()
        if model is not module:
            model.synchronize()
        optimizer.step()
        checkpoints.save(folder, 1, checkpoints.tensors_of(module, optimizer))
    found = checkpoints.tensors_of(module, optimizer)
    return {
        name: (x.full_tensor() if hasattr(x, "full_tensor") else x).clone()
        for name, x in found.items()
    }


@pytest.mark.parametrize("kind", ["DataParallel", "fully_shard"])
def test_other_strategies(kind, tmp_path):
    """Whole tensors and torch's own shards, by the names of the parameters."""
    expected = on_ranks(beside, kind, tmp_path, 0, False, world_size=2)[0]
    assert {"model.norm.weight", "optimizer.0.exp_avg"} < expected.keys()
    assert "model.out.weight" not in expected  # tied: saved once
    for found in on_ranks(beside, kind, tmp_path, 7, True, world_size=3):
        assert largest(found, expected) == 0


def test_every_rank_writes_its_shards_and_no_more(tmp_path):
    """The unit's numbers, cut into even parts, without the zeros that fill the last shard."""
    on_ranks(saved, tmp_path, world_size=3)
    stored = dcp.FileSystemReader(checkpoints.latest(tmp_path)).read_metadata()
    numel = stored.state_dict_metadata["unit.2"].size.numel()
    assert numel % 3, "a case in which the shards are uneven"
    chunks = stored.state_dict_metadata["unit.2"].chunks
    found = sorted((c.offsets[0], c.offsets[0] + c.sizes[0]) for c in chunks)
    assert found == even_bounds(numel, 3)
    files = {index.fqn: info.relative_path for index, info in stored.storage_data.items()}
    assert files["random.0.cpu"] != files["random.2.cpu"]


# ── the pointer ───────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_is_killed_while_it_saves_has_the_checkpoint_before(tmp_path):
    expected = on_ranks(saved, tmp_path, world_size=2)[0]

    def killed(folder):
        model = trained(sharded(decoder()), range(3))
        right = checkpoints.dcp.save

        def write(*arguments, **options):
            if dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            right(*arguments, **options)

        with mock.patch.object(checkpoints.dcp, "save", write):
            checkpoints.save(folder, 3, checkpoints.tensors_of(model))

    with pytest.raises(RankError, match="killed by SIGKILL"):
        on_ranks(killed, tmp_path, world_size=2)
    assert (tmp_path / "step-3").is_dir()  # begun
    assert checkpoints.latest(tmp_path).name == "step-2"
    assert largest(on_ranks(restored, tmp_path, world_size=2)[0][0], expected) == 0


def test_the_pointer_is_moved_not_written(tmp_path):
    """Whoever holds the old one open still reads the old name."""
    for step in (1, 2):
        (tmp_path / f"step-{step}").mkdir()
        (tmp_path / f"step-{step}" / "notes.json").write_text(json.dumps({"step": step}))
    checkpoints.point_to(tmp_path / "step-1")
    with (tmp_path / "latest").open() as old:
        checkpoints.point_to(tmp_path / "step-2")
        assert old.read() == "step-1"
    assert checkpoints.latest(tmp_path) == tmp_path / "step-2"
    assert checkpoints.notes_of(checkpoints.latest(tmp_path)) == {"step": 2}
    assert not (tmp_path / "latest.new").exists()


@given(st.sets(st.integers(0, 30), min_size=1), st.integers(1, 4), st.data())
def test_the_last_ones_stay(tmp_path_factory, steps, keep, data):
    """And nothing of a run that went further before it was killed, nor anything else removed."""
    folder = tmp_path_factory.mktemp("run")
    for name in (*(f"step-{step}" for step in steps), "step-x", "other"):
        (folder / name).mkdir()
    now = data.draw(st.sampled_from(sorted(steps)))
    checkpoints._remove_others(folder / f"step-{now}", keep)
    expected = {f"step-{step}" for step in sorted(s for s in steps if s <= now)[-keep:]}
    assert {path.name for path in folder.iterdir()} == expected | {"step-x", "other"}


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def test_no_checkpoint_and_a_broken_pointer(tmp_path):
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.latest(tmp_path / "nowhere") is None
    (tmp_path / "latest").write_text("step-5")
    with pytest.raises(ValueError, match=r"names step-5, which is not there or not whole; restore"):
        checkpoints.latest(tmp_path)


def test_another_model_or_strategy(tmp_path):
    on_ranks(saved, tmp_path, world_size=2)

    def wider():
        model = sharded(decoder(d_model=12))
        checkpoints.restore(checkpoints.latest(tmp_path), model)

    def whole_module():
        checkpoints.restore(checkpoints.latest(tmp_path), decoder())

    with pytest.raises(RankError, match=r"step-2 has unit.0 of shape \(\d+,\), and here it has"):
        on_ranks(wider, world_size=2)
    with pytest.raises(RankError, match=r"step-2 has no model.token_embedding.weight, .* strategy"):
        on_ranks(whole_module, world_size=1)


def test_a_folder_that_is_not_shared(tmp_path):
    def apart():
        checkpoints.save(tmp_path / f"node {dist.get_rank()}", 1, {"x": torch.ones(1)})

    with pytest.raises(RankError, match=r"rank 1 does not see .*give a folder that all machines"):
        on_ranks(apart, world_size=2)


def test_groups_without_replicas_hold_different_models(tmp_path):
    def apart():
        model = sharded(decoder(), wire=Wire([dist.get_rank()]))
        checkpoints.tensors_of(model)

    with pytest.raises(RankError, match=r"the ranks \[\[0\], \[1\]\] hold a model each"):
        on_ranks(apart, world_size=2)


def test_numbers_that_cannot_be(tmp_path):
    for step, keep in ((-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"step is {step} and keep {keep}"):
            checkpoints.save(tmp_path, step, {}, keep=keep)


def test_more_ranks_than_before_keep_their_own_random_state(tmp_path):
    """There is none for them in the checkpoint."""
    on_ranks(saved, tmp_path, world_size=1)

    def drawn():
        torch.manual_seed(3)
        before = torch.get_rng_state()
        model = sharded(decoder())
        checkpoints.restore(checkpoints.latest(tmp_path), model)
        return torch.equal(before, torch.get_rng_state())

    assert on_ranks(drawn, world_size=2)[0] is False
