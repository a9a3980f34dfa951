"""The golden sets of detections."""

import gzip
import json

import pytest
from conftest import shared
from detectron2.data import DatasetCatalog, MetadataCatalog

from rs_d2.evaluation import detections_from, ground_truth_from

GOLDEN = ("coco_bbox", "coco_segm", "coco_bbox_dense", "lvis_bbox", "lvis_segm")


def read(path):
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


@pytest.fixture(params=GOLDEN)
def golden(request):
    """Ground truth, detections, their type, and what the authors' code says of them."""
    folder = shared("golden/olrp")
    expected = read(folder / "expected.json")[request.param]
    truth = ground_truth_from(read(folder / expected["gt"]), expected["protocol"])
    results = read(folder / expected["detections"])
    iou_type = expected["iou_type"]
    return truth, detections_from(results, truth, iou_type), iou_type, expected


@pytest.fixture
def clean_catalogs(tmp_path, monkeypatch):
    """Forget the data sets that a test registers, and keep its cache to itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    catalogs = (DatasetCatalog, MetadataCatalog)
    before = [set(catalog.list()) for catalog in catalogs]
    yield
    for catalog, names in zip(catalogs, before, strict=True):
        for name in set(catalog.list()) - names:
            catalog.pop(name)
