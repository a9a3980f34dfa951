"""A small file of a huge image costs one line in training, evaluation, prediction, report."""

import json
import resource
import struct
import sys
import zlib

import pytest
from conftest import REPO

pytest.importorskip("detectron2")

from helpers.tiny import own_data, run, write_checkpoint, write_config
from PIL import Image

sys.path.insert(0, str(REPO / "tools"))
import predict


def bomb(path, width=20_000, height=20_000):
    """A whole PNG of one grey; 1.2 GB of RGB out of some 50 kB."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(width + 1)) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, chunks)))


def chunk(named):
    kind, data = named
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    (folder / "images").mkdir()
    bomb(folder / "images" / "bomb.png")
    assert (folder / "images" / "bomb.png").stat().st_size < 500_000
    Image.new("RGB", (64, 64)).save(folder / "images" / "a.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [8, 8, 40, 40], "area": 1600}
    content = {
        "images": [{"id": 1, "file_name": "bomb.png", "height": 20_000, "width": 20_000}],
        "annotations": [{**annotation, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "thing"}],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    (folder / "found.json").write_text(json.dumps([{**annotation, "score": 0.5}]))
    return folder


def peak():
    """Largest memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("more", [[], ["--eval-only"]], ids=["train", "evaluate"])
def test_a_run_names_the_bomb(folder, tmp_path, more, capfd):
    weights = write_checkpoint(tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", "1")
    data = own_data(folder / "boxes.json", folder / "boxes.json")
    keys = ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.DEVICE", "cpu"]
    before = peak()
    assert run("--config-file", write_config(tmp_path), *data, *more, *keys) == 2
    (line,) = [each for each in capfd.readouterr().err.splitlines() if "error: " in each]
    assert "bomb.png" in line
    assert "decompression bomb" in line
    assert peak() - before < 700


def test_prediction_names_the_bomb_and_goes_on(folder, tmp_path, capsys):
    weights = write_checkpoint(tmp_path)
    argv = ["--weights", weights, str(folder / "images"), "--output", str(tmp_path / "out")]
    assert predict.main([*argv, "--num-workers", "0"]) == 1
    told = capsys.readouterr()
    assert "bomb.png" in told.err
    assert "decompression bomb" in told.err
    assert "1 images" in told.out


def test_the_report_leaves_the_bomb_out(folder, tmp_path):
    import evaluate

    argv = f"--gt {folder}/boxes.json --results {folder}/found.json --format coco --iou-type bbox"
    argv += f" --output {tmp_path}/out.json --report {tmp_path}/report --images {folder}/images"
    before = peak()
    assert evaluate.main(argv.split()) == 0
    assert (tmp_path / "report" / "report.html").is_file()
    assert peak() - before < 700
