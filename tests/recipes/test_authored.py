"""The one writer of the course's own sets."""

from __future__ import annotations

from course_utils.recipes.authored import as_lines, write_or_compare

FILES = {"dev.jsonl": as_lines([{"text": "naïve"}]), "choices.json": "{}\n"}


def test_as_lines_is_one_line_of_readable_json_a_row():
    assert as_lines([{"a": "é"}, [1]]) == '{"a": "é"}\n[1]\n'


def test_check_notices_an_altered_and_a_missing_file(tmp_path, capsys):
    assert write_or_compare(tmp_path, FILES, []) == 0
    assert write_or_compare(tmp_path, FILES, ["--check"]) == 0
    (tmp_path / "dev.jsonl").write_text("")
    (tmp_path / "choices.json").unlink()
    assert write_or_compare(tmp_path, FILES, ["--check"]) == 1
    said = capsys.readouterr().out
    assert "dev.jsonl is not what the generator writes" in said
    assert "choices.json is not what the generator writes" in said
