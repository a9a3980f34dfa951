"""tools/analyze_imbalance.py on a small data set."""

import sys

from conftest import REPO, shared
from helpers.tiny import write_config

sys.path.insert(0, str(REPO / "tools"))
import analyze_imbalance


def arguments(tmp_path, *more):
    data = shared("data/nuts")
    files = ["--train-json", str(data / "train.json"), "--train-images", str(data / "images")]
    command = ["--config-file", write_config(tmp_path), *files, "--iterations", "2", *more]
    return [*command, "SOLVER.IMS_PER_BATCH", "1", "OUTPUT_DIR", str(tmp_path / "out")]


def ratios(capsys):
    cells = capsys.readouterr().out.splitlines()[2].strip("| ").split(" | ")
    return cells[:3], [float(cell.removeprefix("1:")) for cell in cells[3:]]


def test_ratios_are_printed_without_training(tmp_path, capsys):
    assert analyze_imbalance.main(arguments(tmp_path)) == 0
    names, (rpn, rcnn, rpn_tasks, rcnn_tasks) = ratios(capsys)
    assert names == ["own_train", "none", "none"]
    assert rpn == rpn_tasks > 1
    assert rcnn_tasks > rcnn
    assert not list((tmp_path / "out").glob("*.pth"))


def test_a_sampler_lowers_the_ratio(tmp_path, capsys):
    analyze_imbalance.main(arguments(tmp_path))
    _, free = ratios(capsys)
    analyze_imbalance.main([*arguments(tmp_path), "MODEL.RPN.SAMPLER", "random"])
    names, sampled = ratios(capsys)
    assert names[1] == "random"
    assert sampled[0] < free[0]


def test_a_dense_detector_has_one_stage(tmp_path, capsys):
    config = str(REPO / "configs" / "quick" / "rs_atss_digits.yaml")
    command = arguments(tmp_path)
    command[1] = config
    assert analyze_imbalance.main(command) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| data set | dense_instances | dense_tasks |"
    instances, tasks = (float(cell[2:]) for cell in table[2].strip("| ").split(" | ")[1:])
    assert tasks > instances > 1


def test_a_mistake_is_one_line(tmp_path, capsys):
    assert analyze_imbalance.main([*arguments(tmp_path), "MODEL.RPN.SAMPLER", "all"]) == 2
    assert capsys.readouterr().err.startswith("error: MODEL.RPN.SAMPLER: 'all' is not one of")
