"""tools/ablate.py: one real comparison in processes of its own, and what it says to mistakes."""

import json
import sys

import pytest
from conftest import REPO

pytest.importorskip("detectron2")

from helpers.tiny import own_data, reset_logging, write_config
from helpers.toy_training import toy_data

from rs_d2.analysis.ablation import TABLES

sys.path.insert(0, str(REPO / "tools"))
import ablate


def test_one_command_trains_in_another_process_and_prints_the_table(tmp_path, capfd):
    train = toy_data(tmp_path, num_images=4)
    argv = ["--config-file", write_config(tmp_path), *own_data(train, train)]
    argv += ["--variant", "plain=", "--variant", "wrong=MODEL.RPN.SAMPLER all"]
    argv += ["--iterations", "1", "--jobs", "1", "--output", str(tmp_path / "out")]
    small = ["MODEL.DEVICE", "cpu", "MODEL.MASK_ON", "False", "SOLVER.IMS_PER_BATCH", "2"]
    try:
        assert ablate.main([*argv, *small]) == 1
    finally:
        reset_logging()
    out, err = capfd.readouterr()
    assert "| variant | box AP | box AP50 | box AP75 | box oLRP |" in out
    assert "* wrong, seed 1: failed: MODEL.RPN.SAMPLER: 'all' is not one of" in out
    assert "error: 1 run(s) failed" in err
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["iterations"] == 1
    assert f"| plain | {result['metrics']['bbox/AP']:.1f} |" in out
    assert "training 1/1" in (folder / "console.txt").read_text()


def test_the_tables_are_listed_with_their_rows(capsys):
    assert ablate.main(["--list"]) == 0
    out = capsys.readouterr().out
    for table in TABLES.values():
        assert f"{table.name}  {table.title}\n" in out
        assert all(f" {row.name} " in out for row in table.rows)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ([], "one of the arguments --table --variant --list is required"),
        (["--table", "S9"], "--table: S9 is not known; there are S1, S2"),
        (["--table", "S8", "--variant", "a="], "not allowed with argument --table"),
        (["--table", "S8", "--seeds", "0"], "argument --seeds: 0 is not at least 1"),
        (["--table", "S8", "--rows", "all"], "--rows: there is no row all"),
        (["--table", "S8", "SEED", "2"], "SEED is set for every run: give --seeds"),
        (["--table", "S8", "SEED"], "'SEED' has no partner"),
        (["--variant", "a"], "--variant: 'a' is neither a yaml file nor"),
        (["--table", "S8", "--train-json", "nowhere.json"], "nowhere.json"),
    ],
)
def test_a_mistake_is_one_line(arguments, culprit, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ablate.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert culprit in line
