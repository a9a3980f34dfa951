"""Comparisons of variants: what is read, what is trained, what is written."""

import json
import os

import pytest
from conftest import REPO

pytest.importorskip("detectron2")

import helpers.tiny_pyramid  # noqa: F401  registers it
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from helpers.tiny import reset_logging, write_config
from helpers.toy_training import toy_data

from rs_d2 import engine
from rs_d2.analysis.ablation import TABLES, Row, Table, ablate, compare, custom_table, variant_of
from rs_d2.analysis.ablation.runs import train
from rs_d2.analysis.ablation.summary import draw, markdown, summarize, write_tables
from rs_d2.analysis.ablation.tables import FIRST_EPOCH
from rs_d2.analysis.ablation.variants import matching, variants_of
from rs_d2.config.load import load_config
from rs_d2.utils.errors import UserError


def test_pairs_are_split_between_keys_and_not_within_values():
    variant = variant_of("wide=MODEL.RPN.SAMPLER random, SOLVER.STEPS (1, 2),SEED 3")
    assert variant.row.name == "wide"
    assert variant.pairs == ("MODEL.RPN.SAMPLER", "random", "SOLVER.STEPS", "(1, 2)", "SEED", "3")
    assert variant_of("plain=").pairs == ()


def test_of_a_file_its_own_model_lines_count(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("_BASE_: x.yaml\nMODEL:\n  RPN: {SAMPLER: random}\nSOLVER: {BASE_LR: 9.0}\n")
    assert variant_of(str(path)).row.name == "mine"
    assert variant_of(str(path)).pairs == ("MODEL.RPN.SAMPLER", "random")


@pytest.mark.parametrize("content", ["MODEL: [1]", "MODEL: x"])
def test_a_file_without_keys_below_model_is_one_line(content, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"--variant: .*mine.yaml: MODEL holds no keys"):
        variant_of(str(path))
    path.write_text("MODEL:")
    assert variant_of(str(path)).pairs == ()


def test_a_file_far_too_long_is_refused_unread(tmp_path):
    with (tmp_path / "long.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="is no config"):
        variant_of(str(tmp_path / "long.yaml"))


def test_a_name_that_no_table_can_show_is_changed(tmp_path):
    path = tmp_path / "a$\\frac$\n| x |\x1b[31m\udc80.yaml"
    path.write_text("MODEL: {}")
    row = variant_of(str(path)).row
    assert row.name == row.labels[0] == "a__frac___ x ___31m_"


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("mine", "'mine' is neither a yaml file nor name=KEY VALUE"),
        ("a b=", "'a b=' is neither"),
        ("a=MODEL.RPN.SAMPLER", "a: MODEL.RPN.SAMPLER has no value"),
        ("nowhere.yaml", "nowhere.yaml does not exist"),
    ],
)
def test_what_is_no_variant_is_named(text, culprit):
    with pytest.raises(UserError, match=r"^--variant: ") as error:
        variant_of(text)
    assert culprit in str(error.value)


def test_two_variants_of_one_name_are_refused():
    with pytest.raises(UserError, match="a is there twice"):
        custom_table([variant_of("a="), variant_of("a=SEED 1")])


def test_rows_are_chosen_by_name_or_wildcard():
    names = [variant.row.name for variant in variants_of(TABLES["S8"])]
    assert len(names) == len(matching(names, [])) == 9
    assert matching(names, ["rs_*", "focal_none_none"]) == ["focal_none_none", *names[-3:]]
    with pytest.raises(UserError, match="no row rs_non_none; did you mean rs_none_none"):
        matching(names, ["rs_non_none"])


def test_a_row_of_other_data_is_shown_but_not_run():
    table = TABLES["S7"]
    assert [row.name for row in table.rows if row.is_other_data] == ["lvis_none_none"]
    assert "lvis_none_none" not in [variant.row.name for variant in variants_of(table)]
    text = markdown(table, [summarize(row, [], {}, 1) for row in table.rows], "")
    assert "| LVIS | none | none |" in text
    assert "| 1:3487 | 1:12 | 1:3487 | 1:10470 | 25.2 |" in text


def test_variants_of_a_seed_start_with_the_weights_that_they_share():
    weights = []
    for row in ("rs_none_none", "cross_entropy_random_random"):
        (variant,) = (v for v in variants_of(TABLES["S8"]) if v.row.name == row)
        base = str(REPO / "configs/ablations/faster_rcnn_digits.yaml")
        cfg, _ = load_config(base, ["MODEL.DEVICE", "cpu", *variant.pairs])
        seed_all_rng(1)
        weights.append(build_model(cfg).state_dict())
    shared = [
        n for n, w in weights[0].items() if n in weights[1] and w.shape == weights[1][n].shape
    ]
    other = {name for name in weights[0] if name not in shared}
    assert other == {f"roi_heads.box_predictor.cls_score.{part}" for part in ("weight", "bias")}
    assert [name for name in shared if not weights[0][name].equal(weights[1][name])] == []


def result(seed, ap, **more):
    curve = [{"iterations": 2, "bbox/AP": ap / 2}, {"iterations": 4, "bbox/AP": ap}]
    metrics = {"bbox/AP": ap, **more}
    return {"seed": seed, "metrics": metrics, "ratios": {"rpn_tasks": 36.2}, "curve": curve}


def test_the_table_has_mean_spread_and_what_was_published(tmp_path):
    rows = (Row("a", ("x",), {"bbox/AP": 39.6}), Row("b", ("y",)), Row("c", ("z",)))
    metrics = ("bbox/AP", FIRST_EPOCH, "rpn_tasks")
    table = Table("T", "a title", ("kind",), metrics, rows, base="")
    summaries = [
        summarize(rows[0], [result(1, 10.0), result(2, 13.0)], {}, 2),
        summarize(rows[1], [result(1, 20.0, **{"bbox/AP50": 40.0})], {2: "failed: no"}, 3),
        summarize(rows[2], [], {1: "failed: why"}, 2),
    ]
    text = markdown(table, summaries, "about")
    assert text.splitlines()[4:] == [
        "| kind | box AP | box AP after one epoch | RPN tasks | published box AP |",
        "| --- | --- | --- | --- | --- |",
        "| x | 11.5 ± 2.1 | 5.8 ± 1.1 | 1:36 | 39.6 |",
        "| y | 20.0 | failed | 1:36 | - |",
        "| z | failed | failed | failed | - |",
        "",
        "* b, seed 2: failed: no",
        "* c, seed 1: failed: why",
    ]
    write_tables(tmp_path, table, summaries, {"data": []}, text)
    draw(tmp_path, table, summaries)
    lines = (tmp_path / "ablation.csv").read_text().splitlines()
    assert lines[0].startswith("name,kind,seed,bbox/AP,")
    assert len(lines) == 6  # three runs and two failures
    first = json.loads((tmp_path / "ablation.json").read_text())["rows"][0]
    assert first["values"]["bbox/AP"] == [10.0, 13.0]
    assert first["spread"]["bbox/AP"] == pytest.approx(1.5 * 2**0.5)
    assert (tmp_path / "curves.png").stat().st_size > 5000
    assert (tmp_path / "final.png").stat().st_size > 5000


def test_a_grid_is_laid_out_as_published():
    table = TABLES["S1"]
    summaries = [summarize(row, [], {}, 1) for row in table.rows]
    summaries[2] = summarize(table.rows[2], [result(1, 10.0)], {}, 1)
    lines = markdown(table, summaries, "").splitlines()[4:]
    assert lines[0].endswith("| constant 1 | constant 2 | constant 3 | value | magnitude |")
    assert lines[2] == "| none | - (38.9) | - (39.7) | 10.0 (39.7) | - (39.7) | - (39.4) |"
    assert len(lines) == 7


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """``ablate`` on a tiny model and set, in this process; and the runs that it did each time."""
    did, stop_after = [], []

    def do_runs(runs, jobs, *, label, tell, done):
        for run in runs:
            if stop_after == [len(did)]:
                raise KeyboardInterrupt
            did.append((run.variant, run.seed))
            train(run, lambda kind, iteration: None)
            done()
        return {}

    monkeypatch.setattr(compare, "do_runs", do_runs)
    config, annotations = write_config(tmp_path), str(toy_data(tmp_path))
    images = str(tmp_path / "images")
    data = engine.OwnData(annotations, images, annotations, images)
    variants = [
        variant_of("plain="),
        variant_of("wrong=MODEL.RPN.SAMPLER all"),
        variant_of("focal=MODEL.RPN.CRITERION.LOSS focal,MODEL.ROI_BOX_HEAD.CRITERION.LOSS focal"),
    ]
    fixed = {"MODEL.DEVICE": "cpu", "SOLVER.IMS_PER_BATCH": 2, "MODEL.MASK_ON": False}
    fixed |= {"MODEL.BACKBONE.NAME": "TinyPyramid", "MODEL.ROI_BOX_HEAD.FC_DIM": 16}
    fixed |= {"INPUT.MIN_SIZE_TRAIN": (48,), "INPUT.MIN_SIZE_TEST": 48}

    def run(iterations=2, stop=None, **more):
        did.clear()
        stop_after[:] = [] if stop is None else [stop]
        overrides = {**fixed, "SOLVER.MAX_ITER": iterations}
        options = {"base": config, "data": data, "variants": variants, "evaluations": 2}
        options |= {"overrides": overrides, "tell": lambda line: None, **more}
        try:
            return ablate(custom_table(variants), tmp_path / "out", **options)
        finally:
            reset_logging()

    return run, did, tmp_path / "out"


def test_runs_are_kept_skipped_and_not_mistaken(compared):
    run, did, out = compared
    with pytest.raises(KeyboardInterrupt):
        run(stop=1)
    assert did == [("plain", 1)]
    rows = json.loads((out / "ablation.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == [[1], [], []]  # what was finished stands in the table
    outcome = run()
    assert did == [("focal", 1)]  # the finished one is skipped, the wrong one costs no other
    plain, wrong, focal = outcome.summaries
    assert outcome.num_failed == 1
    assert "MODEL.RPN.SAMPLER: 'all' is not one of none, random" in wrong.failures[1]
    assert "* wrong, seed 1: failed: MODEL.RPN.SAMPLER" in outcome.markdown
    for summary in (plain, focal):
        assert [point["iterations"] for point in summary.curves[0]] == [1, 2]
        assert {"bbox/AP", "rpn_instances", "rcnn_tasks"} <= summary.values.keys()
    assert not list(out.glob("runs/*/*.pth"))
    results = [json.loads(path.read_text()) for path in out.glob("runs/*/result.json")]
    assert len({each["order"] for each in results}) == 1  # the same images in the same order
    run()
    assert did == []
    run(iterations=1, rows=["plain"])
    assert did == [("plain", 1)]  # another budget is another run
    run(seeds=2, rows=["plain"])
    assert did == [("plain", 2)]
    second = json.loads(next(out.glob("runs/plain-seed2-*/result.json")).read_text())
    assert second["order"] != results[0]["order"]


def test_what_no_run_has_written_is_no_result_and_no_input_is_overwritten(compared):
    run, did, out = compared
    run(rows=["plain"])
    (path,) = out.glob("runs/plain-*/result.json")
    good = path.read_text()
    for wrong in (
        *({"metrics": None}, {"metrics": {"bbox/AP": 10**400}}, {"metrics": {"bbox/AP": "=1"}}),
        *({"curve": ["x"]}, {"revision": None}, {"seconds": "x"}, {"seed": 2}),
    ):
        path.write_text(json.dumps({**json.loads(good), **wrong}))
        with pytest.raises(KeyboardInterrupt):
            run(rows=["plain"], stop=0)  # it would be done again
    path.write_text("[" * 100_000)
    (path.parent / "train_log.jsonl").write_text("rubbish\n[1]\n")
    (path.parent / "model_mine.pth").write_text("of the user")
    run(rows=["plain"])
    assert [file.name for file in path.parent.glob("*.pth")] == ["model_mine.pth"]
    assert did == [("plain", 1)]
    assert json.loads(path.read_text())["metrics"] == json.loads(good)["metrics"]
    annotations, image = out.parent / "train.json", out.parent / "images" / "0.png"
    path.unlink()
    path.symlink_to(annotations)
    with pytest.raises(UserError, match=r"result.json would overwrite the input .*train.json"):
        run(rows=["plain"])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"result.json is a folder, pipe or device"):
        run(rows=["plain"])
    (out / "final.png").unlink(missing_ok=True)
    (out / "final.png").symlink_to(image)
    with pytest.raises(UserError, match=r"final.png would overwrite the input .*0.png"):
        run(rows=["plain"])
    (out / "final.png").unlink()
    os.mkfifo(out / "final.png")
    with pytest.raises(UserError, match=r"final.png is a folder, pipe or device"):
        run(rows=["plain"])


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"overrides": {"OUTPUT_DIR": "x"}}, "OUTPUT_DIR is set for every run: give --output"),
        ({"overrides": {"SEED": 3}}, "SEED is set for every run: give --seeds"),
        ({"overrides": {"SOLVER.BASE_LRR": 3}}, "SOLVER.BASE_LRR is not a config key"),
        ({"rows": ["none"]}, "--rows: there is no row none"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml does not exist"),
    ],
)
def test_what_is_wrong_for_all_ends_before_any_run(options, culprit, compared):
    run, did, _ = compared
    with pytest.raises(UserError, match=culprit):
        run(**options)
    assert did == []


def test_without_a_validation_set_nothing_is_compared(compared):
    run, _, out = compared
    data = engine.OwnData(str(out.parent / "train.json"), str(out.parent / "images"))
    with pytest.raises(UserError, match="--val-json is missing"):
        run(data=data)
