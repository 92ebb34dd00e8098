"""The recipes of the checkpoints, in small, and the checkpoints as they are stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from course_utils import models
from course_utils.assets.catalogue import AssetError, data_folder
from course_utils.cli import main
from course_utils.profiles import for_profile
from course_utils.recipes import RECIPES, g2p_transformer
from course_utils.tasks import pronunciation

TINY = dict(d_model=16, d_ff=16, layers=(1, 1), epochs=2, batch=2, lr=1e-2, dropout=0.1)


@pytest.fixture
def small(small_dictionary, monkeypatch) -> None:
    """A dictionary of six words and a budget of two epochs."""
    monkeypatch.setattr(
        g2p_transformer, "budget_for", lambda profile: for_profile(profile, cpu=TINY, gpu=TINY)
    )


def test_the_recipe_writes_weights_and_a_card_that_load_again(small, tmp_path: Path):
    folder = g2p_transformer.train("cpu", 3, tmp_path / "new" / "folder")
    sizes, facts = g2p_transformer.facts_of(folder)
    assert (sizes.d_model, facts["seed"], facts["epochs"], facts["test_words"]) == (16, 3, 2, 2)
    model = g2p_transformer.load(folder)
    assert not model.training
    rates = g2p_transformer.evaluate(
        model, pronunciation.split(pronunciation.entries(pronunciation.load_cmudict()))[2]
    )
    assert round(rates.word, 4) == facts["test_wer"]  # what is stored is what was scored
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "profile cpu, seed 3" in card
    assert f"| test | 2 | {facts['test_per']:.2%} | {facts['test_wer']:.2%} |" in card


def test_the_recipe_with_one_seed_gives_the_same_weights(small, tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        g2p_transformer.train("cpu", seed, tmp_path / name)
    first, again, other = (g2p_transformer.load(tmp_path / name) for name in "abc")
    same = [torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.token_embedding.weight, other.token_embedding.weight)


def test_course_train_names_what_there_is(small, tmp_path: Path):
    run = CliRunner().invoke
    done = run(main, ["train", "nothing"])
    assert done.exit_code == 2
    assert "there is no recipe 'nothing'; the course has g2p-transformer" in done.output
    done = run(main, ["train", "g2p-transformer", "--profile", "tpu"])
    assert done.exit_code == 2
    assert "it must be one of cpu, gpu" in done.output
    done = run(main, ["train", "g2p-transformer", "--out", str(tmp_path)])
    assert done.exit_code == 0
    assert (tmp_path / "model.safetensors").is_file()


def test_a_missing_checkpoint_names_the_remedy(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(models, "data_folder", lambda: tmp_path)
    with pytest.raises(AssetError, match="course train g2p-transformer"):
        g2p_transformer.load()


# ── what is stored ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", RECIPES)
def test_the_stored_checkpoint_is_small_and_has_its_card(name: str):
    folder = data_folder() / "checkpoints" / name
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} & {"model.safetensors", "runs.json"}
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert (folder / "README.md").is_file()


def test_the_stored_card_is_what_the_header_says(tmp_path: Path):
    stored = models.checkpoint_folder("g2p-transformer")
    (tmp_path / "model.safetensors").write_bytes((stored / "model.safetensors").read_bytes())
    g2p_transformer.write_card(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card == (stored / "README.md").read_text(encoding="utf-8")


def test_the_stored_checkpoint_scores_what_its_card_says():
    """A tenth of the test words: within three standard errors of a share of 1,200."""
    model, facts = (
        g2p_transformer.load(),
        g2p_transformer.facts_of(models.checkpoint_folder("g2p-transformer"))[1],
    )
    *_, test = pronunciation.split(pronunciation.entries(pronunciation.load_cmudict()))
    rates = g2p_transformer.evaluate(model, test[::10])
    assert abs(rates.word - facts["test_wer"]) < 3 * (0.4 * 0.6 / len(test[::10])) ** 0.5
