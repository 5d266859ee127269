# SPDX-License-Identifier: Apache-2.0
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dense_models import LABELS, OPTIONS
from picture_data import encoded
from PIL import Image

from svit_hf.errors import DataError, SViTError
from svit_hf.tasks.detection import Detection
from svit_hf.tasks.objects import Objects
from svit_hf.tasks.options import AnnotationOptions
from svit_hf.tasks.pictures import Augmentation, Origin, View


ORIGIN = Origin("train.parquet", 3)
SIZE = (64, 96)
BOXES = [[10, 20, 30, 15], [0, 0, 90, 60]]


def picture(size=(90, 60)):
    return {"bytes": encoded(Image.new("RGB", size)), "path": None}


def row(objects, **columns):
    return {"image": picture(), "objects": objects, **columns}


@pytest.mark.parametrize(
    "objects",
    [
        {"bbox": BOXES, "category": [2, 0]},
        {"bbox": BOXES, "categories": ["rim", "cell"], "area": [1, 2]},
        [{"bbox": BOXES[0], "label": 2}, {"bbox": BOXES[1], "label": 0}],
    ],
    ids=["numbers", "names", "one by one"],
)
def test_rows_become_samples(objects):
    target = Detection(LABELS, SIZE).read(row(objects, width=90, height=60), ORIGIN).target
    np.testing.assert_array_equal(target.boxes, [[10, 20, 40, 35], [0, 0, 90, 60]])
    assert target.labels.tolist() == [2, 0]
    assert target.crowd.tolist() == [False, False]


@pytest.mark.parametrize("objects", [{"bbox": [], "category": []}, []], ids=["lists", "one by one"])
def test_pictures_of_nothing_are_samples(objects):
    task = Detection(LABELS, SIZE)
    sample = task.read(row(objects), ORIGIN)
    example = task.example(sample, View.whole(sample.size, SIZE))
    assert len(sample.target) == 0
    assert example["boxes"].shape == (0, 4)
    assert example["class_labels"].dtype == torch.int64


def test_rounding_at_the_border_is_cut():
    target = Detection(LABELS, SIZE).read(row({"bbox": [[-1, 50, 20, 11.5]], "category": [0]}), ORIGIN).target
    np.testing.assert_array_equal(target.boxes, [[0, 50, 19, 60]])


def test_boxes_out_of_the_image_are_cut_and_dropped_on_demand():
    objects = {"bbox": [[80, 50, 99, 99], [200, 0, 5, 5], [5, 5, 0, 9]], "category": [0, 1, 2], "iscrowd": [1, 0, 0]}
    target = Detection(LABELS, SIZE, annotations=AnnotationOptions(clip_boxes=True)).read(row(objects), ORIGIN).target
    np.testing.assert_array_equal(target.boxes, [[80, 50, 90, 60]])
    assert target.labels.tolist() == [0]
    assert target.crowd.tolist() == [True]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row({"bbox": [[80, 50, 30, 5]], "category": [0]}), r"object 0 has the box \[80, 50, 30, 5\] \(xywh\)"),
        (row({"bbox": [[5, 5, 0, 9]], "category": [0]}), "which is empty or reaches out"),
        (row({"bbox": [[5, 5, -3, 9]], "category": [0]}), "which is empty or reaches out"),
        (row({"bbox": [[5, 5, float("nan"), 9]], "category": [0]}), "not four"),
        (row({"bbox": [[5, 5, 9]], "category": [0]}), "not four"),
        (row({"bbox": [None], "category": [0]}), "not four"),
        (row({"bbox": BOXES, "category": [0]}), "different lengths"),
        (row({"bbox": BOXES}), "2 objects and 0 classes"),
        (row({"bbox": BOXES, "category": [0, 3]}), "the class 3; the classes are 0 to 2"),
        (row({"bbox": BOXES, "category": [0, -1]}), "the class -1"),
        (row({"bbox": BOXES, "category": [0, "tree"]}), "the class 'tree'"),
        (row({"bbox": BOXES, "category": [0, None]}), "the class None"),
        (row(None), "the column `objects` is None"),
        (row({"bbox": BOXES, "category": [0, 1]}, width=60, height=90), "for an image of 60 x 90 pixels"),
        ({"objects": {"bbox": BOXES, "category": [0, 1]}}, "there is no image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_annotations_that_cannot_be_used_are_named(bad, message):
    with pytest.raises(DataError, match=rf"^train.parquet, row 3: .*{message}"):
        Detection(LABELS, SIZE).read(bad, ORIGIN)


def test_the_other_box_format_is_suggested():
    objects = {"bbox": [[50, 30, 80, 55]], "category": [0]}
    with pytest.raises(DataError, match="The other format is 'xyxy'"):
        Detection(LABELS, SIZE).read(row(objects), ORIGIN)
    task = Detection(LABELS, SIZE, annotations=AnnotationOptions(box_format="xyxy"))
    target = task.read(row(objects), ORIGIN).target
    np.testing.assert_array_equal(target.boxes, [[50, 30, 80, 55]])
    with pytest.raises(SViTError, match="`box_format` is 'yolo'"):
        AnnotationOptions(box_format="yolo")


def test_examples_hold_what_is_visible_as_shares_of_the_view():
    boxes = [[10, 10, 20, 20], [30, 0, 20, 20], [44, 30, 10, 10], [60, 40, 10, 10], [46, 30, 10, 10]]
    objects = {"bbox": boxes, "category": [0, 1, 2, 0, 1], "iscrowd": [0, 1, 0, 0, 0]}
    task = Detection(LABELS, SIZE, augmentation=Augmentation(min_visible=0.3))
    sample = task.read(row(objects), ORIGIN)
    example = task.example(sample, View(0, 0, 48, 60, SIZE, is_mirrored=True))
    # the second is a crowd, of the third 0.4 are visible, the fourth is outside, of the last 0.2 are visible
    assert example["class_labels"].tolist() == [0, 2]
    torch.testing.assert_close(
        example["boxes"],
        torch.tensor([[1 - 20 / 48, 20 / 60, 20 / 48, 20 / 60], [1 - 46 / 48, 35 / 60, 4 / 48, 1 / 6]]),
    )


def test_examples_of_another_size_are_refused():
    # a cell of 20 pixels is another share of them, and the model knows shares alone
    with pytest.raises(
        SViTError, match=r"`size` of `augmentation` is \(128, 64\), and `image_size` \(64, 96\): boxes"
    ):
        Detection(LABELS, SIZE, augmentation=Augmentation(size=(128, 64)))
    with pytest.raises(SViTError, match="multiples of 32"):
        Detection(LABELS, SIZE, augmentation=Augmentation(size=(100, 64)))
    assert Detection(LABELS, SIZE, augmentation=Augmentation(size=SIZE)).augmentation.size == SIZE


@pytest.mark.parametrize("head", ["d_fine", "deformable_detr", "conditional_detr", "detr"])
def test_models_train_and_predict_in_the_pictures_own_sizes(head, checkpoint):
    task = Detection(LABELS, SIZE, head)
    model = task.build_model(checkpoint, width=32, head_options=OPTIONS[head]).train()
    samples = [task.read(row(objects), ORIGIN) for objects in ({"bbox": BOXES, "category": [2, 0]}, [])]
    assert torch.isfinite(task.loss(model, task.collate([task.augment(sample, 0, 0, 0) for sample in samples])))
    model.eval()
    pictures = [Image.new("RGB", (90, 60)), Image.new("RGB", (300, 700), "white")]
    predictions = task.predict(model, pictures)
    assert [len(prediction) > 0 for prediction in predictions] == [True, True]
    # of a picture seven times as high, boxes are as large
    assert predictions[1].boxes[:, 3].max() > 100
    assert ((predictions[0].scores >= 0) & (predictions[0].scores <= 1)).all()
    drawn = task.draw(pictures[0], predictions[0])
    assert drawn.size == (90, 60)


def test_predicted_boxes_end_where_their_picture_does():
    task = Detection(LABELS, SIZE)
    boxes = torch.tensor([[[0.1, 0.5, 0.4, 0.5], [0.9, 0.9, 0.4, 0.4]]])
    outputs = SimpleNamespace(logits=torch.tensor([[[2.0, 0, 0], [1, 0, 0]]]), pred_boxes=boxes)
    predicted = task.predictions(outputs, [(60, 100)])[0]
    np.testing.assert_allclose(predicted.boxes, [[0, 15, 30, 45], [70, 42, 100, 60]], atol=1e-5)


def test_drawings_show_what_is_likely():
    task = Detection(LABELS, SIZE)
    boxes = np.array([[10.0, 10, 40, 40], [50, 10, 80, 40]])
    blank = Image.new("RGB", (90, 60))
    drawn = np.asarray(task.draw(blank, Objects(boxes, np.array([0, 1]), scores=np.array([0.9, 0.1]))))
    assert drawn[:, :45].any()
    assert not drawn[:, 48:].any()
    assert not np.asarray(blank).any()


COCO = {
    "images": [{"id": 7, "file_name": "b.png", "width": 90, "height": 60}, {"id": 3, "file_name": "a.png"}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 20, 30, 15], "iscrowd": 1, "segmentation": []},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 90, 60]},
    ],
}


def write_pictures(folder, names=("a.png", "b.png")):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(picture()["bytes"])


@pytest.mark.parametrize(
    ("file", "pictures", "split"),
    [
        ("annotations/instances_val2017.json", "val2017", "validation"),
        ("train/_annotations.coco.json", "train", "train"),
        ("test.json", "images", "test"),
    ],
)
def test_coco_folders(file, pictures, split, tmp_path):
    write_pictures(tmp_path / pictures)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(json.dumps(COCO))
    rows = Detection.find_rows(tmp_path, split)
    assert rows.labels == ["person", "dog"]
    task = Detection(rows.labels, SIZE)
    first, second = (task.read(*rows[index]) for index in range(2))
    assert len(first.target) == 0
    assert second.target.labels.tolist() == [1, 0]
    assert second.target.crowd.tolist() == [True, False]
    assert str(second.origin).endswith("json, b.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": None}, "is no COCO file"),
        ({"images": [{"id": 7, "file_name": "b.png"}] * 2}, "two images have the same id"),
        ({"images": [{"id": 3, "file_name": "a.png"}]}, "about image 7, which the file does not have"),
        ({"categories": [{"id": 1, "name": "person"}]}, "annotation 1: its category_id is 18"),
    ],
)
def test_damaged_coco_files_are_named(change, message, tmp_path):
    write_pictures(tmp_path / "images")
    (tmp_path / "train.json").write_text(json.dumps(COCO | change))
    with pytest.raises(DataError, match=rf"train.json.*{message}"):
        Detection.find_rows(tmp_path, "train")
    (tmp_path / "train.json").write_text("[")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        Detection.find_rows(tmp_path, "train")


def test_coco_names_no_picture_outside_of_its_folder(tmp_path):
    write_pictures(tmp_path / "images")
    images = [
        {"id": 7, "file_name": "../secret.png"},
        {"id": 3, "file_name": "missing.png"},
        {"id": 9, "file_name": "a\0"},
    ]
    (tmp_path / "train.json").write_text(json.dumps(COCO | {"images": images}))
    (tmp_path / "secret.png").write_bytes(picture()["bytes"])
    rows = Detection.find_rows(tmp_path, "train")
    with pytest.raises(DataError, match="outside of the folder"):
        rows[1]
    with pytest.raises(DataError, match="is no name of a file"):
        rows[2]
    with pytest.raises(DataError, match=r"missing.png: the image cannot be read"):
        Detection(rows.labels, SIZE).read(*rows[0])


def test_yolo_folders(tmp_path):
    write_pictures(tmp_path / "images" / "train", ["a.png", "b.png"])
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "b.txt").write_text("1 0.5 0.5 0.2 0.5\n\n0 0.25 0.25 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: {0: cell, 1: rim}\n")
    rows = Detection.find_rows(tmp_path, "train")
    assert rows.labels == ["cell", "rim"]
    # YOLO's boxes are what they are
    task = Detection(rows.labels, SIZE, annotations=AnnotationOptions(box_format="xyxy", clip_boxes=True))
    assert len(task.read(*rows[0]).target) == 0
    target = task.read(*rows[1]).target
    np.testing.assert_allclose(target.boxes, [[36, 15, 54, 45], [0, 0, 45, 30]])
    assert target.labels.tolist() == [1, 0]
    (tmp_path / "labels" / "train" / "b.txt").write_text("1 0.5 0.5 0.2 0.5\n1 0.1 0.1 0.2 0.2 0.3 0.3")
    with pytest.raises(DataError, match=r"b.txt, row 1: .* is not a class and four numbers"):
        rows[1]
    (tmp_path / "data.yaml").write_text("nc: 2\n")
    with pytest.raises(DataError, match="no list `names`"):
        Detection.find_rows(tmp_path, "train")
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("cell\nrim\n")
    assert Detection.find_rows(tmp_path, "train").labels == ["cell", "rim"]


def test_pictures_of_two_kinds_with_one_name_are_refused(tmp_path):
    write_pictures(tmp_path / "images", ["a.png", "a.jpg"])
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match=r"both 'a.jpg' and 'a.png'"):
        Detection.find_rows(tmp_path, "train")


def test_blood_cells(real_images):
    rows = Detection.find_rows(real_images / "bccd", "test")
    assert rows.labels == ["RBC", "WBC", "Platelets"]
    task = Detection(rows.labels, (96, 128), annotations=AnnotationOptions(box_format="xyxy", clip_boxes=True))
    samples = [task.read(*rows[index]) for index in range(3)]
    assert all(len(sample.target) > 3 for sample in samples)
    with pytest.raises(DataError, match=r"test.parquet, row 0: object 0 .* The other format is 'xyxy'"):
        Detection(rows.labels, (96, 128)).read(*rows[0])


def test_numbers_mean_what_the_data_say(tmp_path):
    features = {"objects": {"categories": {"_type": "List", "feature": {"names": ["rim", "cell"]}}}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.Table.from_pylist([row({"bbox": BOXES, "categories": [0, 1]})]).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "test.parquet")
    rows = Detection.find_rows(tmp_path, "test")
    assert rows.labels == ["rim", "cell"]
    # LABELS has them at 2 and 0
    assert Detection(LABELS, SIZE).read(*rows[0]).target.labels.tolist() == [2, 0]
    with pytest.raises(DataError, match="has the class 'rim'; the classes are"):
        Detection(["cell"], SIZE).read(*rows[0])
