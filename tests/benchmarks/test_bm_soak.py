"""The soak's verdicts: growth, slowing down and remains are found."""

import json
import os
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import bm_soak
from bm_soak import Readings, summary


def readings(memory=100e6, seconds=0.1, num=200):
    made = Readings()
    made.cpu, made.wall = [seconds] * num, [seconds] * num
    made.memory = [memory] * (num // bm_soak.EVERY)
    return made


def test_a_steady_training_passes():
    found = summary(readings(), {"open files": []})
    assert found["is flat"]
    assert found["is steady"]
    assert found["is clean"]
    assert found["its/s late"] == pytest.approx(10)


def test_growth_slowing_down_and_remains_are_found():
    made = readings()
    made.memory = [100e6 + 1e6 * i for i in range(len(made.memory))]
    made.cpu[-20:] = [0.12] * 20
    found = summary(made, {"open files": ["log.txt"]})
    assert not found["is flat"]
    assert not found["is steady"]
    assert not found["is clean"]


def test_what_a_process_holds_is_seen(tmp_path):
    folder = str(tmp_path)
    before = bm_soak.belongings(folder)
    assert before["temporary files"] == []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        after = bm_soak.belongings(folder)
    assert after["temporary files"] == [file.name]
    assert file.name in bm_soak._beyond(after["open files"], before["open files"])
    pid = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60")
    assert str(pid) in bm_soak.belongings(folder)["processes"]
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def test_the_result_file_says_what_was_run(tmp_path, monkeypatch, capsys):
    path = Path(tmp_path, "soak.json")
    monkeypatch.setattr(bm_soak, "train", lambda *_: readings(num=60))
    assert bm_soak.main(["--iterations", "60", "--output", str(path)]) == 0
    content = json.loads(path.read_text())
    assert content["rows"][0]["iterations"] == 60
    assert content["evaluations"] == 20
    assert len(content["memory_mb"]) == 6
    assert str(path) in capsys.readouterr().out
