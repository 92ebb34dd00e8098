"""pip's settings are read as pip reads them: files, variables, lists, numbers, empty values."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from course_utils.assets import pip_settings
from course_utils.assets.catalogue import AssetError

FROM_FILES = pip_settings._from_files


def test_pip_settings_come_from_files_and_variables(world, tmp_path, monkeypatch):
    monkeypatch.setattr(pip_settings, "_from_files", FROM_FILES)
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://one.example/simple\ntimeout = 7\n"
        "find-links =\n    /a\n    /b\n"
        "[install]\nextra-index-url = https://two.example https://three.example\n"
        "trusted-host = two.example\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_INDEX_URL", "https://four.example/simple")
    monkeypatch.setenv("PIP_QUIET", "3")  # must not silence the settings themselves
    settings = pip_settings.read()
    assert settings.index_url == "https://four.example/simple"  # the variable wins
    assert settings.extra_index_urls == ["https://two.example", "https://three.example"]
    assert settings.find_links == ["/a", "/b"]
    assert settings.trusted_hosts == ["two.example"]
    assert settings.timeout == 7
    assert [list(source.values()) for source in settings.sources] == [
        [["/a"]],
        [["/b"]],
        [["https://four.example/simple"]],
        [["https://two.example"]],
        [["https://three.example"]],
    ]


def test_without_pip_the_variables_alone_count(world, monkeypatch):
    monkeypatch.setattr(pip_settings, "_from_files", FROM_FILES)

    def no_pip(*args, **kwargs):
        return subprocess.CompletedProcess(args, 1, "", "No module named pip")

    monkeypatch.setattr(pip_settings.subprocess, "run", no_pip)
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    settings = pip_settings.read()
    assert settings.index_url == world.index.as_uri()
    assert settings.sources == []


def test_the_default_index_is_asked_where_none_is_set(world, monkeypatch):
    monkeypatch.delenv("PIP_INDEX_URL")
    assert pip_settings.read().sources == [{}]


# ── each value, against pip's own parser ────────────────────────────────────────────────────────

ASK_PIP = """
import contextlib, io, json, os, sys
from pip._internal.commands import create_command
from pip._internal.models.search_scope import SearchScope
for variables in json.load(sys.stdin):
    os.environ.update(variables)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            told, _ = create_command("install").parser.parse_args([])
        told.find_links = SearchScope.create(told.find_links, [], False).find_links
        print(json.dumps(vars(told), default=str))
    except SystemExit:
        print("null")
    for name in variables:
        del os.environ[name]
"""
VALUES = {
    "PIP_DEFAULT_TIMEOUT": ["", "7", "0", "2.5", "abc", " ", " 8 ", "1e2", "7s"],
    "PIP_TIMEOUT": ["", "9", "x"],
    "PIP_RETRIES": ["", "0", "3", "0x3", "010", "1.5", "many"],
    "PIP_NO_INDEX": ["", "1", "0", "yes", "NO", "t", "off", "maybe", " "],
    "PIP_FIND_LINKS": ["", " ", "~/wheels", "~/none", "/a /b", "/a\n/b\n", "~nobody-here/x"],
    "PIP_EXTRA_INDEX_URL": ["", "https://one.example https://two.example", "\nfile:///x\n"],
    "PIP_TRUSTED_HOST": ["", "one.example two.example:81", "\tone.example\n"],
    "PIP_CERT": ["", "~/ca.pem", "/ca.pem"],
    "PIP_CLIENT_CERT": ["", "~/mine.pem"],
    "PIP_PROXY": ["", "proxy.example:3128", "http://ann:secret@proxy.example"],
    "PIP_INDEX_URL": ["", "https://one.example/simple", "/a/folder"],
}
CASES = [{name: value} for name, values in VALUES.items() for value in values]
CASES += [{}, {"PIP_DEFAULT_TIMEOUT": "4", "PIP_TIMEOUT": ""}]
SAME = ("find_links", "extra_index_urls", "trusted_hosts", "cert", "client_cert")


@pytest.fixture
def home(world, tmp_path, monkeypatch):
    """A home folder with one folder of wheels, and no setting but the tests' own."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PIP_INDEX_URL", "PIP_RETRIES"):
        monkeypatch.delenv(name)
    return tmp_path


def pips_own(cases: list[dict[str, str]]) -> list[dict | None]:
    """The options of `pip install` for each set of variables; None where pip refuses."""
    done = subprocess.run(
        [sys.executable, "-c", ASK_PIP],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def ours() -> dict | None:
    try:
        return vars(pip_settings.read())
    except AssetError:
        return None


def test_every_value_means_what_it_means_to_pip(home, monkeypatch):
    pytest.importorskip("pip")
    other = []
    for case, pips in zip(CASES, pips_own(CASES), strict=True):
        with monkeypatch.context() as patch:
            for name, value in case.items():
                patch.setenv(name, value)
            mine = ours()
        if mine is None or pips is None:
            other += [case] if mine is not pips else []
            continue
        pairs = [(mine[name], pips[name]) for name in SAME]
        pairs += [(mine["no_index"], bool(pips["no_index"])), (mine["proxy"] or "", pips["proxy"])]
        pairs += [(mine["timeout"], pips["timeout"] or None)]
        # Where nothing is set, these differ on purpose: the public index, 2 retries and not 5.
        for name in ("index_url", "retries"):
            pairs += [(mine[name], pips[name])] if case.get(f"PIP_{name.upper()}") else []
        other += [(case, pair) for pair in pairs if pair[0] != pair[1]]
    assert other == []


def test_an_empty_variable_does_not_hide_what_a_file_says(home, monkeypatch):
    rows = {"global.index-url": "https://one.example", "global.timeout": "4", "install.cert": ""}
    monkeypatch.setattr(pip_settings, "_from_files", lambda: rows)
    for name in ("PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT", "PIP_CERT"):
        monkeypatch.setenv(name, "")
    settings = pip_settings.read()
    assert (settings.index_url, settings.timeout) == ("https://one.example", 4)
    assert settings.cert is None


@pytest.mark.parametrize("name", pip_settings.NOT_PIPS_OWN)
def test_certificates_named_for_requests_count_as_in_pip(home, monkeypatch, name):
    monkeypatch.setenv(name, "/ca.pem")
    assert pip_settings.read().cert == "/ca.pem"
    monkeypatch.setenv("PIP_CERT", "/own.pem")
    assert pip_settings.read().cert == "/own.pem"


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("PIP_TIMEOUT", "-1", "a number from 0 on"),
        ("PIP_TIMEOUT", "nan", "a number from 0 on"),
        ("PIP_DEFAULT_TIMEOUT", "inf", "a number from 0 on"),
        ("PIP_RETRIES", "many", "a whole number"),
        ("PIP_NO_INDEX", "maybe", "yes or no"),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(home, monkeypatch, name, value, limit):
    monkeypatch.setenv(name, value)
    with pytest.raises(AssetError, match=limit) as caught:
        pip_settings.read()
    assert repr(value) in str(caught.value)
    assert "unset PIP_" in str(caught.value)


def test_fewer_than_no_retries_are_none(home, monkeypatch):
    monkeypatch.setenv("PIP_RETRIES", "-3")
    assert pip_settings.read().retries == 0


@pytest.mark.parametrize(
    ("text", "told"), [("no section\n", "pip cannot read"), ("[global]\ntimeout = x\n", "'x'")]
)
def test_a_file_that_pip_refuses_is_not_passed_over(home, tmp_path, monkeypatch, text, told):
    monkeypatch.setattr(pip_settings, "_from_files", FROM_FILES)
    (tmp_path / "pip.conf").write_text(text)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    with pytest.raises(AssetError, match=told) as caught:
        pip_settings.read()
    assert "\n" not in str(caught.value)


def test_variables_meant_for_pips_own_runs_do_not_stop_its_settings(home, tmp_path, monkeypatch):
    """A log that can't be written, another interpreter, a text that the stream can't hold."""
    monkeypatch.setattr(pip_settings, "_from_files", FROM_FILES)
    (tmp_path / "pip.conf").write_text("[global]\nfind-links = /räder→\n", encoding="utf-8")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    for name, value in {"LOG": "/nowhere/log", "PYTHON": "/nowhere", "TIMEOUT": "3"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    settings = pip_settings.read()
    assert settings.find_links == ["/räder→"]
    assert settings.timeout == 3


def test_a_pip_that_cannot_be_started_is_passed_over(home, tmp_path, monkeypatch):
    """As after a clone was moved: the script's first line names an interpreter that is gone."""
    monkeypatch.setattr(pip_settings, "_from_files", FROM_FILES)
    script = tmp_path / "pip"
    script.write_text("#!/nowhere/python\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pip_settings.sys, "executable", "/nowhere/python")
    assert pip_settings.read().sources == [{}]
