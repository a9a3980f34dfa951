"""No weights file and no config runs code, in whichever program it is read."""

import json
import os
import pickle
import resource
import sys
import tarfile
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from conftest import REPO

pytest.importorskip("detectron2")

from helpers.tiny import own_data, reset_logging, run, write_config
from PIL import Image
from torch import nn

from rs_d2.checkpoint.files import read_checkpoint, read_pickle
from rs_d2.checkpoint.loading import RSCheckpointer
from rs_d2.config.load import config_from_text, load_config
from rs_d2.export import load
from rs_d2.prediction.predictor import Predictor
from rs_d2.utils.errors import UserError

sys.path.insert(0, str(REPO / "tools"))
import analyze_imbalance
import convert_mmdet
import export_model
import predict
import publish_model
import sweep_thresholds

PROGRAMS = (analyze_imbalance, convert_mmdet, export_model, predict, publish_model)
PROGRAMS = {module.__name__: module.main for module in (*PROGRAMS, sweep_thresholds)}
PROGRAMS["train_net"] = lambda argv: run(*argv)


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One grey image, a json of one object in it, the tiny model's config, and bombs."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "images").mkdir()
    Image.new("RGB", (64, 64), "grey").save(folder / "images" / "grey.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [8, 8, 40, 40], "area": 1600}
    content = {
        "images": [{"id": 1, "file_name": "grey.png", "height": 64, "width": 64}],
        "annotations": [{**annotation, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "thing"}],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    write_config(folder)
    bomb = {"model": {"w": Bomb(folder / "ran")}, "__author__": "a stranger"}
    (folder / "x.pkl").write_bytes(pickle.dumps(bomb))
    (folder / "proposals.pkl").write_bytes(pickle.dumps({"ids": Bomb(folder / "ran")}))
    torch.save(bomb, folder / "x.pth")
    torch.save({"model_state": bomb["model"]}, folder / "x.pyth")
    with open(folder / "old.pth", "wb") as file:
        pickle.dump(bomb, file)
    return folder


def error_line(main, argv, capfd):
    """What a program says on stderr: one line, exit code 2."""
    capfd.readouterr()
    try:
        assert main([str(argument) for argument in argv]) == 2
    finally:
        reset_logging()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    return line


def command(program, folder, config, weights, output):
    """Arguments with which a program reads a config and weights."""
    data = own_data(folder / "boxes.json", folder / "boxes.json")
    named = ["--config-file", config]
    keys = ["MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 1]
    keys += ["OUTPUT_DIR", output]
    image = folder / "images" / "grey.png"
    return {
        "train": [*named, *data, *keys],
        "evaluate": [*named, *data, "--eval-only", *keys],
        "resume": [*named, *data, "--resume", *keys],
        "resume and evaluate": [*named, *data, "--resume", "--eval-only", *keys],
        "analyze_imbalance": [*named, *data[:4], "--iterations", 1, *keys],
        "sweep_thresholds": [*named, *data[4:], "--weights", weights, "--output", output],
        "predict": [*named, "--weights", weights, image, "--output", output],
        "publish_model": [*named, "--name", "x", weights, output],
        "export_model": [*named, "--weights", weights, "--format", "torch"]
        + ["--output", folder / "out.export.pth"],
        "convert_mmdet": [*named, weights, folder / "out.pth"],
    }[program]


def entry(program):
    return PROGRAMS.get(program, PROGRAMS["train_net"])


@pytest.mark.parametrize("weights", ["x.pkl", "x.pth"])
@pytest.mark.parametrize(
    "program",
    [
        *("train", "evaluate", "resume", "resume and evaluate", "analyze_imbalance"),
        *("sweep_thresholds", "predict", "publish_model", "export_model", "convert_mmdet"),
    ],
)
def test_no_program_runs_what_a_weights_file_asks_for(program, weights, folder, tmp_path, capfd):
    path = folder / weights
    if program.startswith("resume"):
        (tmp_path / weights).write_bytes(path.read_bytes())
        (tmp_path / "last_checkpoint").write_text(weights)
        path = ""
    argv = command(program, folder, folder / "tiny.yaml", path, tmp_path)
    assert weights in error_line(entry(program), argv, capfd)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["x.pyth", "old.pth", "x.pkl", "x.pth"])
def test_no_form_of_weights_runs_code_whatever_torch_takes_for_granted(name, folder, monkeypatch):
    plain = torch.load  # as torch before 2.6 is
    monkeypatch.setattr(
        torch, "load", lambda *a, weights_only=False, **k: plain(*a, weights_only=weights_only, **k)
    )
    with pytest.raises(
        UserError, match=rf"^MODEL\.WEIGHTS: .*{name}.*(could run code|not a checkpoint)"
    ):
        RSCheckpointer(nn.Linear(1, 1)).load(str(folder / name))
    assert not (folder / "ran").exists()


def test_the_tar_format_which_old_torch_reads_unchecked_is_refused(tmp_path):
    (tmp_path / "pickle").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with tarfile.open(tmp_path / "x.pth", "w") as file:
        file.add(tmp_path / "pickle", "pickle")
    with open(tmp_path / "x.pth", "ab") as file:  # a zip's end, so that some take it for one
        file.write(b"PK\x05\x06" + bytes(18))
    with pytest.raises(UserError, match=r"x\.pth is a tar file .*refused"):
        read_checkpoint(tmp_path / "x.pth")


def test_proposal_files_run_no_code(folder, tmp_path, capfd):
    argv = command("train", folder, folder / "tiny.yaml", "", tmp_path)
    argv += ["MODEL.LOAD_PROPOSALS", "True"]
    argv += ["DATASETS.PROPOSAL_FILES_TRAIN", f"('{folder / 'proposals.pkl'}',)"]
    assert "proposals.pkl: holds" in error_line(PROGRAMS["train_net"], argv, capfd)
    assert not (folder / "ran").exists()


class Crafted:
    """An array of objects whose data type says that it holds none: any address could be read."""

    def __reduce__(self):
        reconstruct = np.ones(1).__reduce__()[0]
        state = (1, (1,), HidingType(), False, b"\x41" * 8)
        return reconstruct, (np.ndarray, (0,), b"b"), state


class HidingType:
    def __reduce__(self):
        fields = {"a": (np.dtype("O"), 0)}
        return np.dtype, ("V8", False, True), (3, "|", None, ("a",), fields, 8, 1, 0)


class BareType(HidingType):
    def __reduce__(self):
        return (
            np.dtype,
            ("f8", False, True),
            (3, "|", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 1, 0),
        )


@pytest.mark.parametrize(
    "content",
    [
        Crafted(),
        np.array([object()], dtype=object),
        np.zeros(1, dtype=[("a", "f4")]),
        {"w": BareType()},
        np.datetime64("2020-01-01"),
    ],
    ids=["hidden objects", "objects", "fields", "fields later", "dates"],
)
def test_arrays_in_a_pickle_hold_plain_numbers_only(content, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": content}, protocol=2))
    with pytest.raises(UserError, match="refused"):
        read_pickle(tmp_path / "x.pkl")


def test_what_is_shared_a_thousand_fold_is_read_once(tmp_path):
    content = []
    for _ in range(60):  # 2 ** 60 paths through it
        content = [content, content]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": content}))
    assert list(read_pickle(tmp_path / "x.pkl")) == ["w"]


HOSTILE = {
    "memo of 34 GB": b"\x80\x02}r\xff\xff\xff\x7f.",
    "text of 2 ** 60 bytes": b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"x.",
    "frame of 2 ** 62 bytes": b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"}.",
    "persistent id": b"\x80\x02}Q.",
    "extension": b"\x80\x02\x82\x01.",
    "attribute of a class": b"cnumpy\nndarray\n(NU\x0c__setstate__ccollections\nOrderedDict\ndtb.",
    "method by its name": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
    "builtin": b"c__builtin__\neval\n(S'1'\ntR.",
    "new object": b"\x80\x02cnumpy\nndarray\nK\x01\x85\x81.",
    "array of 10 ** 15": b"cnumpy\nndarray\n(L1000000000000000L\ntR.",
    "long integer": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "nested lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "text in another codec": b"c_codecs\nencode\n(S'x'\nS'bz2'\ntR.",
    "instance": b"(inumpy.testing\nrundocs\n.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_cost_no_trace_and_no_memory(content, tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert plain(read_pickle(path))
    except UserError as error:
        assert str(error).startswith(str(path))  # noqa: PT017, either is right
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    path.write_bytes(pickle.dumps({"w": np.ones(3)}))
    assert np.array_equal(read_pickle(path)["w"], np.ones(3))  # nothing of it outlives the file


def plain(content):
    """Whether there is nothing but plain types in it."""
    inner = [*content, *content.values()] if isinstance(content, dict) else content
    return all(map(plain, inner)) if isinstance(inner, list) else type(inner) in (int, str, bytes)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_arrays_of_a_pickle_are_those_that_were_written(protocol, tmp_path):
    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4, dtype=">i8"),
        np.zeros((0, 3), np.uint8),
        np.float16(2.5),
        np.array(7),
        np.array(["ab", "c"]),
        np.array([True, False]),
        np.int64(3),
    ]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": (arrays, b"\xff")}, protocol=protocol))
    found, raw = read_pickle(tmp_path / "x.pkl")["w"]
    assert raw == b"\xff"
    for one, other in zip(arrays, found, strict=True):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    found[0][0, 0] = 5  # as loading into a model may


@pytest.mark.parametrize("form", ["d2", "caffe2", "pycls"])
def test_files_of_other_libraries_load_as_detectron2_loads_them(form, tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = {"0.weight": weight, "0.bias": np.ones(2, np.float32)}
    path = tmp_path / f"x.{'pyth' if form == 'pycls' else 'pkl'}"
    if form == "pycls":
        tensors = {name: torch.from_numpy(value) for name, value in state.items()}
        torch.save({"model_state": {**tensors, "0.num_batches_tracked": torch.ones(1)}}, path)
    else:
        blobs = {"blobs": {"0_w": weight, "0_b": state["0.bias"], "0_w_momentum": weight}}
        zoo = {"model": state, "__author__": "zoo", "matching_heuristics": True}
        path.write_bytes(pickle.dumps(zoo if form == "d2" else blobs, protocol=2))
    checkpointer = RSCheckpointer(model)
    checkpointer.load(str(path))
    assert checkpointer.unset == {}
    assert torch.equal(model[0].weight.detach(), torch.from_numpy(weight))


TAGS = [
    "!!python/object/apply:os.mkdir [{mark}]",
    "!!python/object/new:os.mkdir [{mark}]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object:rs_d2.utils.errors.UserError {{}}",
    "!!python/tuple {{a: 1}}",
    "!unknown x",
]


@pytest.mark.parametrize(
    "program",
    [
        *("train", "evaluate", "analyze_imbalance", "sweep_thresholds"),
        *("predict", "publish_model", "export_model", "convert_mmdet"),
    ],
)
def test_no_program_runs_what_a_config_asks_for(program, folder, tmp_path, capfd):
    mark = tmp_path / "ran"
    (tmp_path / "base.yaml").write_text(f"VERSION: 2\nOUTPUT_DIR: {TAGS[0].format(mark=mark)}")
    (tmp_path / "leaf.yaml").write_text("_BASE_: [base.yaml]\n")
    tensors = {"model": {"w": torch.ones(1)}}
    torch.save(tensors, tmp_path / "x.pth")
    argv = command(program, folder, tmp_path / "leaf.yaml", tmp_path / "x.pth", tmp_path / "out")
    line = error_line(entry(program), argv, capfd)
    assert "base.yaml, line 2: the tag" in line
    assert "could run code" in line
    assert not mark.exists()


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_in_a_config_is_named_with_its_line(tag, tmp_path):
    mark = tmp_path / "ran"
    text = f"VERSION: 2\nMODEL:\n  WEIGHTS: {tag.format(mark=mark)}\n"
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml, line 3: the tag \S+ is refused"):
        load_config(str(tmp_path / "x.yaml"), [])
    with pytest.raises(UserError, match=r"x\.pth: its config, line 3: the tag"):
        config_from_text(text, "x.pth")
    cfg, _ = load_config("", [])
    with pytest.raises(UserError, match="is refused"):
        cfg.merge_from_file(str(tmp_path / "x.yaml"))
    assert not mark.exists()


def test_the_config_in_a_checkpoint_runs_no_code(tmp_path):
    text = f"OUTPUT_DIR: {TAGS[0].format(mark=tmp_path / 'ran')}"
    content = {"model": {"w": torch.ones(1)}, "rs_d2": {"config": text, "class_names": []}}
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth: its config, line 1: the tag"):
        Predictor(tmp_path / "x.pth", device="cpu")
    assert not (tmp_path / "ran").exists()


def test_tuples_that_older_versions_dumped_are_read(tmp_path):
    text = "DATASETS:\n  TRAIN: !!python/tuple [a, b]\nSOLVER:\n  STEPS: !!python/tuple\n  - 30\n"
    (tmp_path / "x.yaml").write_text(text + "  BASE_LR: 0.5\nINPUT:\n  MIN_SIZE_TRAIN: (1, 2)\n")
    cfg, named = load_config(str(tmp_path / "x.yaml"), [])
    assert cfg.DATASETS.TRAIN == ("a", "b")
    assert cfg.SOLVER.STEPS == (30,)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (1, 2)
    assert "SOLVER.STEPS" in named
    assert config_from_text(text, "x.pth").SOLVER.STEPS == (30,)


NESTED = "a: " + "[" * 20000
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("_BASE_: x.yaml", r"includes itself by _BASE_ \(x\.yaml -> x\.yaml\)"),
        ("_BASE_: [y.yaml]", r"includes itself by _BASE_ \(x\.yaml -> y\.yaml -> x\.yaml\)"),
        ("_BASE_: ./link.yaml", "includes itself"),
        ("_BASE_: 3", "3 is no file"),
        ("_BASE_: [base.yaml]\nMODEL: {WEIGHTS: {a: 1}}", "MODEL.WEIGHTS holds keys"),
        ("1: 2", "1 is no name"),
        ("? [a]\n: 2", "x.yaml"),
        ("a: 2024-99-99", "x.yaml is not valid yaml"),
        ("a: !!int many", "x.yaml is not valid yaml"),
        ("a: \x01", "x.yaml is not valid yaml"),
        (NESTED, "nested too deeply"),
        (LAUGHS, "line 6: aliases repeat too much"),
        ("a: &a [*a]", "line 1: aliases repeat too much"),
        ("SOLVER: {MAX_ITER: '" + "-" * 100_000 + "1'}", "x.yaml"),
    ],
    ids=range(14),
)
def test_a_broken_config_is_one_line(text, culprit, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    (tmp_path / "y.yaml").write_text("_BASE_: x.yaml")
    (tmp_path / "base.yaml").write_text("MODEL: {WEIGHTS: a}")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "x.yaml")
    with pytest.raises(UserError, match=culprit) as error:
        load_config(str(tmp_path / "x.yaml"), [])
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("base", ["/dev/zero", "/proc/self/mem", "pipe", "."])
def test_a_base_that_would_never_end_is_refused(base, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "x.yaml").write_text(f"_BASE_: {base}")
    with pytest.raises(UserError, match=r"is no regular file|cannot be read"):
        load_config(str(tmp_path / "x.yaml"), [])


def test_a_file_far_too_long_for_a_config_is_refused_unread(tmp_path):
    with (tmp_path / "x.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"x\.yaml is no config: it has more than 1000000 char"):
        load_config(str(tmp_path / "x.yaml"), [])


@pytest.mark.parametrize("text", ["x" * 5, b"\xff\xfe\x00", "ab\0c"], ids=["none", "bytes", "zero"])
def test_a_base_that_cannot_be_read_is_named(text, tmp_path):
    raw = text if isinstance(text, bytes) else b'_BASE_: "' + text.encode() + b'.yaml"'
    (tmp_path / "x.yaml").write_bytes(raw)
    with pytest.raises(UserError, match=r"--config-file: \S*"):
        load_config(str(tmp_path / "x.yaml"), [])


def test_values_on_the_command_line_run_no_code_and_are_bounded():
    cfg = partial(load_config, "")
    with pytest.raises(UserError, match=r"^SOLVER\.MAX_ITER"):
        cfg(["SOLVER.MAX_ITER", "__import__('os').system('true')"])
    with pytest.raises(UserError, match=r"^SOLVER\.MAX_ITER"):
        cfg(["SOLVER.MAX_ITER", "-" * 100_000 + "1"])


@pytest.mark.parametrize(
    "line",
    [
        "torch.save(x, 'F')",
        "x.save('F')",
        "torch.from_file('F', True, 4)",
        "getattr(x, 'sa\\166e')('F')",
        "ops.image.write_file('F', x)",
    ],
)
def test_an_exported_model_that_reaches_files_is_refused_before_it_is_loaded(line, tmp_path):
    class Model(nn.Module):
        def forward(self, x: torch.Tensor):
            return x + 77

    plain, path, target = tmp_path / "plain.ts", tmp_path / "model.ts", tmp_path / "written"
    torch.jit.script(Model()).save(str(plain))
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".py"):
                evil = f"    {line}\n    return".replace("F", str(target))
                content = content.replace(b"    return", evil.encode())
            new.writestr(name, content)
    with pytest.raises(UserError, match=r"model.ts is refused: '.*' in line \d+ of its"):
        load(path)
    assert not target.exists()
