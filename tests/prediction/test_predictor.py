"""A checkpoint as a function: what goes in, what comes out, what is refused."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.data import DatasetMapper
from detectron2.utils.visualizer import Visualizer
from helpers.tiny import write_checkpoint, write_config

import rs_d2
from rs_d2 import Predictor, model_zoo
from rs_d2.config import lookup, score_thresh_key
from rs_d2.utils.errors import UserError

NAMES = tuple(f"thing {i}" for i in range(30))
HEIGHT, WIDTH = 60, 80
# One of each family: two stages, a cascade, dense, masks without boxes; and baselines with
# cross-entropy and focal loss.
FAMILIES = (
    "quick/rs_mask_rcnn_own_data",
    "quick/rs_cascade_rcnn_own_data",
    "quick/rs_atss_digits",
    "quick/paa_digits",
    "quick/rs_solov2_digits",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"), class_names=NAMES)


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor(checkpoint, device="cpu")


@pytest.fixture
def pixels():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((WIDTH, HEIGHT)))


def same(first, second, atol=0.0):
    assert first.image_size == second.image_size
    assert torch.allclose(first.pred_boxes.tensor, second.pred_boxes.tensor, atol=atol)
    assert torch.allclose(first.scores, second.scores, atol=atol)
    assert torch.equal(first.pred_classes, second.pred_classes)
    return True


def test_the_package_offers_it_by_name():
    assert rs_d2.Predictor is Predictor
    with pytest.raises(AttributeError, match="has no attribute 'Predictr'"):
        _ = rs_d2.Predictr


def test_a_checkpoint_alone_is_enough(predictor, pixels):
    found = predictor(Image.fromarray(pixels))
    assert 0 < len(found) <= 100
    assert found.image_size == (HEIGHT, WIDTH)
    assert found.pred_masks.shape == (len(found), HEIGHT, WIDTH)
    assert found.scores.device.type == "cpu"
    assert not found.scores.requires_grad
    assert predictor.class_names == NAMES
    assert predictor.score_thresh == 0.05
    assert not predictor.model.training


def test_a_checkpoint_is_read_once_and_into_memory_as_needed(checkpoint, monkeypatch):
    reads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: reads.append((a[0], k)) or load(*a, **k))
    predictor = Predictor(checkpoint, device="cpu")
    ((path, options),) = reads
    assert path == checkpoint
    assert options["mmap"]
    assert options["weights_only"]
    for name, value in load(checkpoint, weights_only=True)["model"].items():
        assert torch.equal(value, predictor.model.state_dict()[name])


def test_keys_may_be_given_as_a_mapping(checkpoint):
    overrides = {"TEST.DETECTIONS_PER_IMAGE": 7, "INPUT.FORMAT": "RGB"}
    cfg = Predictor(checkpoint, device="cpu", overrides=overrides).cfg
    assert (cfg.TEST.DETECTIONS_PER_IMAGE, cfg.INPUT.FORMAT) == (7, "RGB")


def test_the_model_sees_what_it_sees_in_evaluation(predictor, pixels, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    entry = {"file_name": str(path), "height": HEIGHT, "width": WIDTH}
    expected = DatasetMapper(predictor.cfg, is_train=False)(entry)
    assert torch.equal(predictor.prepare(path)["image"], expected["image"])


def test_paths_pil_images_and_bgr_arrays_agree(predictor, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "image.png")
    found = predictor(tmp_path / "image.png")
    assert same(found, predictor(str(tmp_path / "image.png")))
    assert same(found, predictor(Image.fromarray(pixels)))
    assert same(found, predictor(pixels[:, :, ::-1]))


def test_an_rgb_model_sees_an_rgb_image(checkpoint, pixels):
    as_rgb = Predictor(checkpoint, device="cpu", overrides=["INPUT.FORMAT", "RGB"])
    assert np.array_equal(as_rgb.prepare.read(pixels[:, :, ::-1]), pixels)
    assert np.array_equal(as_rgb.prepare.read(Image.fromarray(pixels)), pixels)
    assert np.array_equal(as_rgb.prepare.to_rgb(pixels), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA", "I;16", "CMYK"])
def test_every_mode_of_an_image_is_read(predictor, pixels, tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(pixels[:, :, 0].astype(np.uint16))
    else:
        image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    read = predictor.prepare.read(path)
    assert (read.shape, read.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    assert len(predictor(path)) > 0


@pytest.mark.parametrize("as_file", [True, False])
def test_an_image_is_turned_as_its_exif_says(predictor, pixels, tmp_path, as_file):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path, exif=exif)
    image = path if as_file else Image.open(path)
    turned = predictor.prepare.to_rgb(predictor.prepare.read(image))
    assert np.array_equal(turned, np.rot90(pixels, -1))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)],
)
def test_another_array_is_refused(predictor, array):
    with pytest.raises(ValueError, match=r"expected a uint8 array \[H, W, 3\] in BGR"):
        predictor(array)


def test_a_batch_finds_what_single_images_do(predictor, pixels):
    images = [pixels, pixels[::-1], np.ascontiguousarray(pixels[:, ::-1])]
    together = predictor.batch(images)
    # Random weights give nearly equal scores, whose order rounding may change: compare the boxes.
    for found, image in zip(together, images, strict=True):
        alone = predictor(image)
        assert found.image_size == (HEIGHT, WIDTH)
        assert torch.allclose(found.scores, alone.scores, atol=1e-4)
    assert predictor.batch([]) == []


def test_images_of_different_sizes_make_a_batch(predictor, pixels):
    sizes = [each.image_size for each in predictor.batch([pixels, pixels[:40, :50]])]
    assert sizes == [(HEIGHT, WIDTH), (40, 50)]


def test_the_threshold_is_the_one_asked_for(checkpoint, pixels):
    strict = Predictor(checkpoint, device="cpu", score_thresh=0.999)
    assert strict.score_thresh == 0.999
    assert len(strict(pixels)) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_predicts_with_its_own_threshold(family, tmp_path, pixels):
    key = score_thresh_key(model_zoo.get_config(family))
    path = write_checkpoint(tmp_path, "TEST.DETECTIONS_PER_IMAGE", "7", config=f"{family}.yaml")
    everything = Predictor(path, device="cpu", score_thresh=0.0)
    assert lookup(everything.cfg, key) == everything.score_thresh == 0.0
    assert 0 < len(everything(pixels)) <= 7
    assert len(Predictor(path, device="cpu", score_thresh=0.999)(pixels)) == 0


def test_names_come_from_the_caller_first_and_the_data_set_last(checkpoint, tmp_path):
    given = [f"given {i}" for i in range(30)]
    assert Predictor(checkpoint, device="cpu", class_names=given).class_names == tuple(given)
    unnamed = write_checkpoint(tmp_path)
    digits = Predictor(unnamed, device="cpu")
    assert digits.class_names[0] == "orange_0"
    ids = digits.metadata.thing_dataset_id_to_contiguous_id
    assert sorted(ids.values()) == list(range(30))


def test_unknown_names_are_made_up_and_known_to_be(tmp_path):
    path = write_checkpoint(tmp_path, "DATASETS.TRAIN", "('own_things',)")
    predictor = Predictor(path, device="cpu")
    assert predictor.class_names[:2] == ("class 0", "class 1")
    assert predictor.about.class_names == ()


def test_detectron2s_visualizer_takes_the_metadata(predictor, pixels):
    found = predictor(pixels)[:3]
    drawn = Visualizer(pixels, predictor.metadata).draw_instance_predictions(found)
    assert (drawn.get_image() != pixels).any()


@pytest.mark.parametrize("kind", ["path", "object"])
def test_a_file_without_config_takes_one(checkpoint, tmp_path, kind):
    content = torch.load(checkpoint, weights_only=True)
    torch.save({"model": content["model"]}, tmp_path / "bare.pth")
    with pytest.raises(UserError, match=r"bare.pth holds no config: name the one"):
        Predictor(tmp_path / "bare.pth", device="cpu")
    config = write_config(tmp_path)
    if kind == "object":
        config = Predictor(checkpoint, device="cpu").cfg  # frozen, as it is
    assert Predictor(tmp_path / "bare.pth", config=config, device="cpu").score_thresh == 0.05


def test_the_reader_can_be_sent_to_another_process(predictor, pixels):
    sent = pickle.loads(pickle.dumps(predictor.prepare))
    assert torch.equal(sent(pixels)["image"], predictor.prepare(pixels)["image"])


def test_a_head_of_another_class_count_is_refused(checkpoint):
    with pytest.raises(UserError, match=r"in this model; was it trained with other classes"):
        Predictor(checkpoint, device="cpu", overrides=["MODEL.ROI_HEADS.NUM_CLASSES", "29"])


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"score_thresh": 1.5}, r"^score_thresh: 1.5 is not in \[0, 1\)$"),
        ({"device": "gpu"}, r"^device: 'gpu' is not a device$"),
        ({"class_names": ["one"]}, r"has 30 classes, but 1 names are given$"),
        ({"config": "quick/rs_mask_rcn.yaml"}, r"does not exist"),
        ({"overrides": ["INPUT.FORMATT", "RGB"]}, r"did you mean INPUT.FORMAT\?$"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(checkpoint, options, culprit):
    with pytest.raises(UserError, match=culprit):
        Predictor(checkpoint, **{"device": "cpu", **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there_is_named(checkpoint):
    with pytest.raises(UserError, match="'cuda:0' was asked for but no GPU is there"):
        Predictor(checkpoint, device="cuda:0")


def test_a_config_of_another_version_is_named(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["rs_d2"]["config"] += "FUTURE_KEY: 1\n"
    torch.save(content, tmp_path / "future.pth")
    with pytest.raises(UserError, match=r"future.pth: its config: FUTURE_KEY is not a config key"):
        Predictor(tmp_path / "future.pth", device="cpu")
