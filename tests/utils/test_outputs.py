"""No program overwrites what it reads, nor writes one file for two options."""

import os

import pytest

from rs_d2.utils.csv_files import write_csv
from rs_d2.utils.errors import UserError
from rs_d2.utils.outputs import check_outputs


@pytest.fixture
def tree(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_text(folder)
    return tmp_path


def test_an_output_that_is_an_input_is_named_by_any_path(tree, monkeypatch):
    inputs = [tree / "a" / "1.jpg", None, "http://somewhere/x.pkl", tree / "b" / "1.jpg"]
    check_outputs(inputs, [("--output", tree / "a" / "2.PNG"), ("--report", tree / "none.jpg")])
    (tree / "link").symlink_to(tree / "b")
    (tree / "soft.jpg").symlink_to(tree / "b" / "1.jpg")
    (tree / "hard.jpg").hardlink_to(tree / "b" / "1.jpg")
    monkeypatch.chdir(tree / "b")
    targets = [tree / "a" / ".." / "b" / "1.jpg", tree / "link" / "1.jpg", tree / "hard.jpg"]
    for target in (*targets, tree / "soft.jpg", "1.jpg"):
        match = f"^--output: {target} would overwrite the input .*b/1.jpg; choose another --output$"
        with pytest.raises(UserError, match=match):
            check_outputs(inputs, [("--per-class", None), ("--output", target)])


def test_one_file_for_two_options_is_named(tree):
    (tree / "link").symlink_to(tree / "a")
    pair = [("--output", tree / "a" / "new.json"), ("--per-class", tree / "link" / "new.json")]
    with pytest.raises(UserError, match=r"^--per-class: .*new\.json is the file of --output, too"):
        check_outputs([], pair)


def test_devices_folders_and_odd_names_are_left_to_others(tree):
    null = os.devnull
    check_outputs([null], [("--output", null), ("--per-class", null), ("--report", tree / "a")])
    check_outputs([tree / "a"], [("--output", "x\0y"), ("--report", "z" * 5000)])


def test_text_that_a_spreadsheet_would_calculate_is_quoted(tmp_path):
    path = tmp_path / "new" / "x.csv"
    texts = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", " =1", "a=1", "'=1", ""]
    write_csv(path, ["name", "=n"], [{"name": text, "=n": -1.5} for text in [*texts, None]])
    lines = path.read_bytes().decode().replace("\r\n", "|")
    assert lines.startswith("name,'=n|'=1+1,-1.5|'+1,-1.5|'-1,-1.5|'@SUM(1),-1.5|")
    assert lines.endswith("' =1,-1.5|a=1,-1.5|'=1,-1.5|,-1.5|,-1.5|")
    assert '"\'\r=1"' in lines
    assert '"\'\n=1"' in lines


def test_a_csv_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / "x.csv"
    write_csv(path, ["a"], [{"a": 1}])
    with pytest.raises(KeyError):
        write_csv(path, ["a"], [{"a": 2}, {}])
    assert path.read_text() == "a\n1\n"
    assert list(tmp_path.iterdir()) == [path]
