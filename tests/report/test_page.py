"""The page and the table of classes."""

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.browser import Browser
from helpers.made_detections import SIDE, made
from PIL import Image

from rs_d2.evaluation import detections_from, evaluate_detections, ground_truth_from
from rs_d2.report.class_counts import count_objects, counts_of_metadata
from rs_d2.report.page import report_html, write_report
from rs_d2.report.per_class import COLUMNS, per_class_rows, write_per_class
from rs_d2.report.worst_images import _read, worst_images

HOSTILE = (
    "<script>document.title = 'script'</script>",
    "<img src=x onerror=\"document.title = 'img'\">",
    "</td></table></details><h1>out</h1>",
    "{{ 7 * 7 }} {% raise %}",
    "\" autofocus onfocus=\"document.title = 'onfocus'",
    "<!-- & &amp; $\\frac{",
    "two\nlines",
    "</svg><style>* { display: none }</style>",
)


class Page(HTMLParser):
    """What a page consists of: its elements and, by cell, heading or caption, its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts = [], {"td": [], "h1": [], "title": [], "figcaption": []}
        self._open = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in self.texts:
            self._open = tag
            self.texts[tag].append("")

    def handle_endtag(self, tag):
        self._open = None if tag == self._open else self._open

    def handle_data(self, data):
        if self._open is not None:
            self.texts[self._open][-1] += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


def evaluated(style, iou_type="bbox", names=(), **size):
    content, results = made(style, **size)
    for category, name in zip(content["categories"], names, strict=False):
        category["name"] = name
    truth = ground_truth_from(content, style)
    found = detections_from(results, truth, iou_type)
    return content, evaluate_detections(truth, found, iou_type)


def test_the_rows_of_all_classes_add_up():
    content, evaluation = evaluated("lvis", seed=1)
    rows = per_class_rows(evaluation)
    assert [row["id"] for row in rows] == [c["id"] for c in content["categories"]]
    assert sum(row["instances"] for row in rows) == sum(
        not a["ignore"] for a in content["annotations"]
    )
    assert sum(row["detections"] + row["left_out"] for row in rows) == len(evaluation.detections)
    assert sum(row["negative_images"] for row in rows) == sum(
        len(image["neg_category_ids"]) for image in content["images"]
    )
    for metric in ("AP", "AP50", "oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN"):
        values = [row[metric] for row in rows if row[metric] is not None]
        assert np.mean(values) == pytest.approx(evaluation.summary[metric]), metric


def test_the_csv_holds_the_rows(tmp_path):
    content, evaluation = evaluated("coco", seed=2)
    counts = count_objects(content["annotations"], evaluation.ground_truth)
    write_per_class(tmp_path / "new" / "classes.csv", evaluation, counts)
    with (tmp_path / "new" / "classes.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert tuple(rows[0]) == COLUMNS
    assert [float(row["train_count"]) for row in rows] == [int(r["instances"]) for r in rows]
    assert all(row["frequency"] == "" for row in rows)
    for row, expected in zip(rows, per_class_rows(evaluation), strict=True):
        for metric in ("AP", "oLRP", "threshold"):
            value = None if row[metric] == "" else float(row[metric])
            assert value == expected[metric]


def test_counts_of_training_sets_are_added_or_unknown(tmp_path):
    content, evaluation = evaluated("lvis")
    truth, path = evaluation.ground_truth, tmp_path / "train.json"
    path.write_text(json.dumps(content))
    one = counts_of_metadata([{"json_file": str(path)}], truth)
    two = counts_of_metadata([{"json_file": str(path)}] * 2, truth)
    assert one.values.sum() == sum(not a["ignore"] for a in content["annotations"])
    np.testing.assert_array_equal(two.values, 2 * one.values)
    assert counts_of_metadata([], truth) is None
    assert counts_of_metadata([{"json_file": str(tmp_path / "none.json")}], truth) is None
    stated = {"class_image_count": [{"id": 2, "image_count": 5}]}
    counts = counts_of_metadata([stated], truth)
    assert counts.values[1] == 5
    assert math.isnan(counts.values[0])
    assert counts_of_metadata([stated, {"json_file": str(path)}], truth) is None


@pytest.mark.parametrize("style", ["coco", "lvis"])
def test_the_page_is_whole_and_loads_nothing(tmp_path, style):
    _, boxes = evaluated(style, seed=3)
    _, masks = evaluated(style, "segm", seed=3)
    path = write_report(tmp_path / "out", {"bbox": boxes, "segm": masks}, 'model <A> & "B"')
    page = path.read_text()
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(http" not in page
    assert "@import" not in page
    found = Page(page)
    assert not {"script", "link", "iframe", "base"} & {tag for tag, _ in found.elements}
    assert found.texts["h1"] == found.texts["title"][:1] == ['model <A> & "B"']
    assert found.count("svg") == 6
    assert found.count("img") == 12
    assert found.count("details") == 2
    assert len(found.texts["figcaption"]) == 18
    for figure in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(figure)
    for value in (boxes.summary["AP"], masks.summary["oLRP"]):
        assert f"<td>{value:.1f}</td>" in page
    assert ("rare" in page) == (style == "lvis")
    assert (tmp_path / "out" / "per_class_segm.csv").is_file()


def hostile_page():
    """A page whose title and class names try to be more than text."""
    _, evaluation = evaluated("lvis", seed=5, names=HOSTILE, num_images=60)
    return report_html({"bbox": evaluation}, HOSTILE[0], None, None, {HOSTILE[1]: HOSTILE[2]})


def test_hostile_names_stay_text():
    page = hostile_page()
    hostile, harmless = Page(page), Page(report_html({"bbox": evaluated("lvis", seed=5)[1]}, "m"))
    for name in HOSTILE:
        assert name in hostile.texts["td"]
    assert hostile.texts["h1"] == [HOSTILE[0]]
    assert hostile.count("script") == 0
    for tag in ("h1", "img", "style", "details", "svg"):
        assert hostile.count(tag) == harmless.count(tag), tag
    assert not any(key.startswith("on") for _, attrs in hostile.elements for key in attrs)


def test_a_browser_shows_the_page_as_it_is_meant(tmp_path):
    address = (tmp_path / "page.html").as_uri()
    with Browser(tmp_path / "profile") as browser:
        (tmp_path / "page.html").write_text(hostile_page(), encoding="utf-8")
        browser.open(address, 1000, 2000)
        assert browser.evaluate("document.title") == HOSTILE[0]  # no script has set another
        cells = browser.evaluate("[...document.querySelectorAll('td')].map(c => c.textContent)")
        assert set(HOSTILE) <= set(cells)
        loaded = "[...document.images].map(image => image.naturalWidth)"
        assert browser.evaluate(loaded) == [720] * 6
        assert (
            browser.evaluate("document.documentElement.scrollWidth") == 1000
        )  # nothing sticks out
        assert [a for a in browser.requests if not a.startswith("data:")] == [address]
        picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    pixels = np.asarray(picture).astype(int)
    assert (pixels.std(axis=-1) > 20).mean() > 0.002  # the colours of curves and boxes
    assert (pixels == 0xE6).all(-1).mean() > 0.1  # the blank images


def test_a_page_about_nothing_found_can_be_made():
    content, _ = made("lvis")
    truth = ground_truth_from(content, "lvis")
    evaluation = evaluate_detections(truth, detections_from([], truth, "segm"), "segm")
    page = report_html({"segm": evaluation}, "nothing")
    assert "<td>0.0</td>" in page
    assert "true positives (0)" in page


def test_the_worst_images_have_most_mistakes():
    _, evaluation = evaluated("coco", seed=4)
    worst = [*worst_images(evaluation, 20)]
    counts = [len(w.wrong) + len(w.missed) for w in worst]
    assert counts == sorted(counts, reverse=True)
    lrp, matches = evaluation.lrp, evaluation.matches
    n = matches.num_objects[0]
    missed = np.nansum(n * lrp.false_negatives[0])
    assert sum(len(w.missed) for w in worst) == round(missed)
    assert sum(len(w.found) for w in worst) <= n.sum() - missed
    assert {w.image for w in worst} <= set(range(20))


def test_pictures_are_drawn_on_the_images_that_are_there(tmp_path):
    _, evaluation = evaluated("coco", seed=4)
    title = {"bbox": evaluation}
    blank = report_html(title, "model", tmp_path)
    assert blank == report_html(title, "model")
    for image in range(1, 21):
        Image.new("RGB", (SIDE, SIDE), "purple").save(tmp_path / f"{image}.png")
    assert report_html(title, "model", tmp_path) != blank
    (tmp_path / "1.png").write_text("no image")
    assert report_html(title, "model", tmp_path).count("data:image/jpeg") == 6


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "{}/secret.png", ".."])
def test_no_image_outside_the_folder_is_shown(tmp_path, name):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6), "red").save(tmp_path / "secret.png")
    assert _read(name.format(tmp_path), tmp_path / "images") is None
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    assert _read("http://host/x/a.png", tmp_path / "images").size == (8, 6)


def test_images_of_16_bits_are_shown_scaled(tmp_path):
    Image.fromarray(np.full((6, 8), 25700, dtype=np.uint16)).save(tmp_path / "a.png")
    assert _read("a.png", tmp_path).getpixel((0, 0)) == (100, 100, 100)
