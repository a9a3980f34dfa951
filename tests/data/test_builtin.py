"""The catalogs: the embedded set, and whether other sets are in place."""

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from conftest import REPO
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from PIL import Image

from rs_d2.data import builtin, check_datasets, check_num_classes, register_builtin
from rs_d2.data.digits.digits import digits_categories, make_digits
from rs_d2.utils.errors import UserError

NAMES = ("digits_train", "digits_val")
CATALOGS = (DatasetCatalog, MetadataCatalog)


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Register a small digits set in a temporary folder; every making leaves a line in a file."""
    kept = [(catalog, dict(catalog)) for catalog in CATALOGS]
    for catalog in CATALOGS:
        for name in NAMES:
            catalog.pop(name, None)

    def make_small(root):
        with open(tmp_path / "made", "a") as log:
            log.write("made\n")
        make_digits(root, num_train=12, num_val=10, size=96, progress=False)

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(builtin, "make_digits", make_small)
    register_builtin()
    yield tmp_path / "digits"
    for catalog, content in kept:
        catalog.data = content


def num_objects(name):
    return sum(len(image["annotations"]) for image in DatasetCatalog.get(name))


def test_registering_twice_reads_and_writes_nothing(digits):
    register_builtin()
    check_datasets(NAMES)
    assert not digits.exists()
    assert MetadataCatalog.get("digits_train").json_file == str(digits / "train.json")


def test_the_first_load_makes_the_set(digits):
    train, val = (get_detection_dataset_dicts([name], filter_empty=False) for name in NAMES)
    assert (len(train), len(val)) == (12, 10)
    with Image.open(val[0]["file_name"]) as image:
        assert image.size == (val[0]["width"], val[0]["height"])
    assert (digits.parent / "made").read_text() == "made\n"


def test_one_process_makes_the_set_while_the_others_wait(digits):
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        counts = list(pool.map(num_objects, ["digits_val"] * 3))
    assert counts == [num_objects("digits_val")] * 3
    assert (digits.parent / "made").read_text() == "made\n"


def test_metadata_names_classes_and_groups(digits):
    metadata = MetadataCatalog.get("digits_val")
    categories = digits_categories()
    ids = metadata.thing_dataset_id_to_contiguous_id
    assert metadata.evaluator_type == "lvis"
    assert [metadata.thing_classes[ids[c["id"]]] for c in categories] == [
        c["name"] for c in categories
    ]
    assert set(metadata.frequencies) == {"r", "c", "f"}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "digits"
    with pytest.raises(UserError, match=f"cannot be made in {root} .*DETECTRON2_DATASETS"):
        builtin.load_digits_split(root, "train")


def test_a_missing_set_names_the_path_and_the_help(tmp_path):
    name = "somewhere"
    json_file = tmp_path / "train.json"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(json_file=str(json_file), image_root=str(tmp_path / "images"))
    try:
        with pytest.raises(UserError) as error:
            check_datasets([name])
        json_file.touch()
        with pytest.raises(UserError, match=f"folder {tmp_path / 'images'} is missing"):
            check_datasets([name])
        (tmp_path / "images").mkdir()
        check_datasets([name])
        json_file.write_bytes("{}".encode("utf-16"))
        with pytest.raises(UserError, match=f"{json_file} is not plain UTF-8"):
            check_datasets([name])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    text = str(error.value)
    assert text.startswith(f"data set somewhere: file {json_file} is missing")
    assert "DETECTRON2_DATASETS" in text
    assert text.endswith("datasets/README.md says what goes where")


@pytest.mark.parametrize("name", ["coco_2017_val", "lvis_v1_train"])
def test_the_published_sets_are_known(name):
    if MetadataCatalog.get(name).image_root.startswith("/"):
        pytest.skip("DETECTRON2_DATASETS points at real data")
    with pytest.raises(UserError, match=f"data set {name}: file .*{name.split('_')[0]}/"):
        check_datasets([name])


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UserError, match=r"lvis_v2_train is not known; did you mean lvis_v1_train"):
        check_datasets(["lvis_v2_train"])
    with pytest.raises(UserError, match=r"known: .*coco_2017_train"):
        check_datasets(["x"])


def test_checking_a_file_needs_no_detectron2():
    code = "import sys; sys.modules['detectron2'] = None; import rs_d2.coco.reading"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)


def test_a_model_with_another_number_of_classes_is_named(digits):
    key = "MODEL.ROI_HEADS.NUM_CLASSES"
    check_num_classes(NAMES, 30, key)
    expected = "^MODEL.ROI_HEADS.NUM_CLASSES: 80, but data set digits_train has 30 classes$"
    with pytest.raises(UserError, match=expected):
        check_num_classes(NAMES, 80, key)


def test_a_data_set_that_states_no_classes_is_passed_over():
    check_num_classes(["nothing is known of this one"], 7, "KEY")
