"""Small COCO and LVIS contents, and changes to them."""

SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]


def coco(**changes):
    """A complete COCO file: two images, two categories with a gap, one object each."""
    content = {
        "info": {},
        "images": [
            {"id": 7, "file_name": "a.png", "width": 64, "height": 48},
            {"id": 3, "file_name": "sub/b.png", "width": 64, "height": 48},
        ],
        "categories": [{"id": 9, "name": "fig"}, {"id": 4, "name": "date"}],
        "annotations": [
            annotation(1, image_id=7, category_id=9),
            annotation(2, image_id=3, category_id=4),
        ],
    }
    return {**content, **changes}


def annotation(identity, **changes):
    fields = {"image_id": 7, "category_id": 9, "bbox": [10.0, 10.0, 20.0, 20.0]}
    mask = {"segmentation": SQUARE, "area": 400.0, "iscrowd": 0}
    return {"id": identity, **fields, **mask, **changes}


def lvis():
    """The same objects in LVIS form, but for what LVIS adds to them."""
    content = coco()
    for image in content["images"]:
        image |= {"neg_category_ids": [4], "not_exhaustive_category_ids": []}
    for category, group in zip(content["categories"], "rf", strict=True):
        category["frequency"] = group
    for entry in content["annotations"]:
        del entry["iscrowd"]
    return content


def changed(table, index, **fields):
    """`coco()` with some fields of one entry replaced; a field that is ... is removed."""
    content = coco()
    entry = {**content[table][index], **fields}
    content[table][index] = {key: value for key, value in entry.items() if value is not ...}
    return content
