"""The catalogue: what it says of each asset, and the folder that the assets are kept in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from assets_inputs import ALL, nothing_to_do
from safetensors.torch import load_file

from course_utils import models
from course_utils.assets import catalogue, fetching
from course_utils.assets.catalogue import AssetError, describe

ROOT = Path(__file__).parents[2]


def test_names_are_the_six_assets():
    assert catalogue.names() == ALL


@pytest.mark.parametrize("name", ALL)
def test_each_asset_is_described_in_full(name):
    asset = catalogue.describe(name)
    texts = ("description", "package", "version", "archive", "licence", "citation", "source")
    assert [field for field in texts if not getattr(asset, field)] == []
    assert asset.role in {"decoder", "encoder", "data"}
    assert asset.archive.endswith({"wheel": ".whl", "sdist": ".tar.gz"}[asset.kind])
    assert asset.version in asset.archive
    for item in (asset, *asset.members, *([asset.inner] if asset.inner else [])):
        assert re.fullmatch(r"[0-9a-f]{64}", item.sha256)
        assert item.size > 0
    assert len({member.name for member in asset.members}) == len(asset.members)


def test_no_file_names_the_host_of_an_index():
    files = (
        "course_utils/assets/catalogue.py",
        "course_utils/assets/fetching.py",
        "course_utils/models.py",
        "data/assets.toml",
    )
    for file in (*files, "data/README.md"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not re.search(r"pypi|pythonhosted|/simple", text), file


def test_the_data_readme_credits_every_asset():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for name in ALL:
        asset = catalogue.describe(name)
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert f"{asset.package} {asset.version}" in row
        assert asset.licence.split(" (")[0] in row
        assert f"{asset.size / 1e6:.1f} MB" in row


def test_an_unknown_name_gets_the_list_of_names():
    for ask in (
        catalogue.describe,
        lambda name: fetching.fetch(describe(name)),
        lambda name: models.verify(describe(name)),
        lambda name: models.fetch_all([name]),
    ):
        with pytest.raises(AssetError, match=r"'smolm2'.*smollm2, minilm, g2p"):
            ask("smolm2")


@pytest.mark.parametrize("name", ALL)
def test_every_asset_is_cached_and_sound(name):
    assert models.verify(describe(name)) == []
    assert fetching.fetch(describe(name), nothing_to_do) == catalogue.cache_folder() / name


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    assert catalogue.cache_folder() == tmp_path
    monkeypatch.setenv("COURSE_CACHE", "~/somewhere")
    assert catalogue.cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("COURSE_CACHE")
    assert catalogue.cache_folder().name == "llms-measured"


def test_decoder_embeddings_are_tied(smollm2):
    model, _ = smollm2
    assert model.lm_head.weight is model.model.embed_tokens.weight
    folder = catalogue.cache_folder() / "smollm2-transformers"
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def test_a_catalogue_that_cannot_be_read(world):
    for text, word in (("version = 2", "format 2"), ("[toy", "cannot be read"), ("", "version")):
        world.catalogue.write_text(text)
        catalogue._read_catalogue.cache_clear()
        with pytest.raises(AssetError, match=word):
            catalogue.names()
    world.catalogue.unlink()
    catalogue._read_catalogue.cache_clear()
    with pytest.raises(AssetError, match=r"restore data/assets\.toml"):
        catalogue.names()


@pytest.mark.parametrize("chosen", ["", "~nobody-of-that-name/models"])
def test_without_a_home_folder_the_cache_asks_for_one(monkeypatch, chosen):
    monkeypatch.setenv("COURSE_CACHE", chosen)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a uid without an entry in passwd
    with pytest.raises(AssetError, match="set COURSE_CACHE to the full path") as caught:
        catalogue.cache_folder()
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("COURSE_CACHE", "/somewhere")
    assert catalogue.cache_folder() == Path("/somewhere")


def test_a_model_of_an_unknown_users_home_is_no_folder(monkeypatch):
    with pytest.raises(AssetError, match="there is no such file"):
        models.gguf_path("~nobody-of-that-name/model.gguf")
    with pytest.raises(AssetError, match="could not be loaded"):
        models.load_decoder("~nobody-of-that-name/model")


def test_the_catalogue_may_lie_in_the_home_folder(monkeypatch, tmp_path):
    (tmp_path / "mine.toml").write_text("version = 1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COURSE_ASSETS", "~/mine.toml")
    assert catalogue.names() == []
