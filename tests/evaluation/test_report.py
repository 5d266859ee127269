# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from svit_hf.evaluation.report import ClassCounts, ClassificationReport


@pytest.fixture
def make_report():
    def make(classes, **kwargs):
        num_images = sum(count for count, _ in classes)
        num_hits = sum(hits for _, hits in classes)
        values = {
            "num_images": num_images,
            "num_hits": num_hits,
            "num_broken": 0,
            "num_left_out": 0,
            "num_not_finite": 0,
            "accuracy": num_hits / num_images,
            "top5_accuracy": 1.0,
            "loss": 0.25,
            "calibration_error": 0.125,
            "classes": tuple(ClassCounts(*counts) for counts in classes),
            "seconds": 2.0,
        }
        return ClassificationReport(**(values | kwargs))

    return make


def test_rows_say_what_was_found(make_report):
    report = make_report([(4, 3), (0, 0), (6, 6)])
    assert report.rows() == {
        "images": "10",
        "accuracy": "90.00%",
        "  95 % interval": "59.58% to 98.21%",
        "top-5 accuracy": "100.00%",
        "loss": "0.2500",
        "calibration error": "0.1250",
        "images/s": "5.0",
    }
    assert "accuracy                90.00%" in report.table().splitlines()


def test_rows_tell_what_did_not_count(make_report):
    rows = make_report([(4, 3)], num_broken=1, num_left_out=2, num_not_finite=3).rows()
    assert [rows[title] for title in list(rows)[-3:]] == ["1", "2", "3"]


def test_class_table_leaves_out_classes_without_images(make_report):
    table = make_report([(4, 3), (0, 0), (6, 6)]).class_table(["cat", "dog", "a long name"])
    assert table.splitlines() == [
        "class        accuracy  right  images",
        "cat            75.00%      3       4",
        "a long name   100.00%      6       6",
    ]


def test_many_classes_are_told_by_the_worst(make_report):
    table = make_report([(100, index) for index in range(100, 40, -1)]).class_table()
    title, *lines = table.splitlines()
    assert title.startswith("worst 20 of 60 classes")
    assert [line.split()[0] for line in lines] == [str(index) for index in range(59, 39, -1)]


def test_json_holds_everything(make_report):
    report = make_report([(4, 3), (6, 6)], num_broken=1)
    content = json.loads(json.dumps(report.to_json(["crane", "crane"]), allow_nan=False))
    assert content["accuracy"] == 0.9
    assert content["accuracy_interval"] == list(report.accuracy_interval)
    assert content["images_per_second"] == 5.0
    assert content["num_broken"] == 1
    assert content["classes"] == [
        {"name": "crane", "num_images": 4, "num_hits": 3},
        {"name": "crane", "num_images": 6, "num_hits": 6},
    ]
    assert [counts["name"] for counts in report.to_json()["classes"]] == ["0", "1"]
