# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch

from svit_hf.errors import EvaluationError, SViTError
from svit_hf.evaluation.label_maps import LabelMap, map_labels


MODEL = ["cat", "dog", "eel", "fox", "gnu"]


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write_file


def targets(label_map):
    return [[number for number in row if number >= 0] for row in label_map.targets.tolist()]


def test_same_names_in_the_same_order_need_nothing():
    # even if they are not unique: two classes of ImageNet-1k are called "crane"
    names = ["crane", "crane", "maillot"]
    label_map = map_labels(names, names)
    assert targets(label_map) == [[0], [1], [2]]
    assert label_map.description == "the 3 classes of the model"


def test_names_decide_and_not_numbers():
    label_map = map_labels(["gnu", "cat", "fox", "eel", "dog"], MODEL)
    assert targets(label_map) == [[4], [0], [3], [2], [1]]
    assert label_map.description == "the 5 classes of the model, in another order; matched by name"


def test_fewer_names_are_found_and_told():
    label_map = map_labels(["fox", "dog"], MODEL)
    assert targets(label_map) == [[3], [1]]
    assert label_map.description == "2 of the 5 classes of the model, matched by name"
    assert not label_map.excluded(5).any()


def test_different_names_are_refused_with_both():
    with pytest.raises(
        SViTError, match=r"the model does not have 1: hen\. The data has 6: cat, .*, hen; .* 5: gnu, .* `label_map`"
    ):
        map_labels([*MODEL, "hen"], MODEL[::-1])
    with pytest.raises(SViTError, match=r"The data has 30: .*name 19, \.\.\.; the model has 5"):
        map_labels([f"name {number}" for number in range(30)], MODEL)


@pytest.mark.parametrize(
    ("data", "model"), [(["dog", "cat"], ["cat", "dog", "cat"]), (["cat", "cat"], MODEL)], ids=["model", "data"]
)
def test_ambiguous_names_are_refused(data, model):
    with pytest.raises(SViTError, match="are not unique"):
        map_labels(data, model)


def test_lines_say_what_the_data_calls_each_class(write):
    path = write("wnids.txt", "n5\nn3\nn4\n\nn1\nn2\n")
    label_map = map_labels(["n1", "n2", "n5"], MODEL, label_map=path)
    assert targets(label_map) == [[3], [4], [0]]
    assert label_map.description == "by wnids.txt"


def test_lines_may_give_several_classes_one_label(write):
    assert targets(map_labels(["pet", "wild"], MODEL, label_map=write("a.txt", "pet\npet\nwild\nwild\nwild\n"))) == [
        [0, 1],
        [2, 3, 4],
    ]


def test_object_leads_from_labels_to_classes(write):
    path = write("map.json", {"chat": "cat", "chien": 1, "sauvage": ["fox", 4], "unused": 0})
    assert targets(map_labels(["sauvage", "chat", "chien"], MODEL, label_map=path)) == [[3, 4], [0], [1]]


def test_lists_are_found_by_the_number_of_the_image(write):
    lists = [[0], [1, 2], [], [4]]
    names = [f"/val/{folder}/ILSVRC2012_val_0000000{number}.JPEG" for folder, number in (("a", 2), ("b", 4), ("c", 3))]
    label_map = map_labels(["a"], MODEL, label_map=write("real.json", lists), image_names=lambda: names)
    assert label_map.is_by_image
    assert targets(label_map) == [[1, 2], [4], []]
    assert "by the numbers in their names" in label_map.description
    assert label_map.targets_of(torch.zeros(2, dtype=torch.int64), torch.tensor([1, 0])).tolist() == [[4, -1], [1, 2]]


def test_lists_are_found_by_place_if_there_are_as_many(write):
    path = write("real.json", [[0], [1, 2], []])
    label_map = map_labels(["a"], MODEL, label_map=path, image_names=lambda: ["x", "y", "z"])
    assert targets(label_map) == [[0], [1, 2], []]
    assert "by their place in the data" in label_map.description


@pytest.mark.parametrize(
    "names",
    [["x", "y"], ["ILSVRC2012_val_00000001", "y", "z"], ["ILSVRC2012_val_00000004"] * 3],
    ids=["fewer", "mixed", "number-too-high"],
)
def test_lists_that_do_not_fit_the_images_are_refused(write, names):
    with pytest.raises(SViTError, match=r"with 3 lists, and the data has \d images"):
        map_labels(["a"], MODEL, label_map=write("real.json", [[0], [1], [2]]), image_names=lambda: names)


@pytest.mark.parametrize("lines", ["n1\nn2\n", "dog\nfox\n", "1\n3\n"], ids=["data", "model", "numbers"])
def test_mask_names_classes_in_any_way(write, lines):
    wnids = write("wnids.txt", "n0\nn1\nn9\nn2\nn4\n")
    label_map = map_labels(["n1", "n2"], MODEL, label_map=wnids, mask=write("mask.txt", lines))
    assert label_map.competitors.tolist() == [1, 3]
    assert label_map.excluded(5).tolist() == [True, False, True, False, True]
    assert label_map.description == "by wnids.txt; the model chooses among the 2 of mask.txt"


def test_mask_may_hold_classes_that_the_data_lacks(write):
    wnids = write("wnids.txt", "n0\nn1\nn9\nn2\nn4\n")
    label_map = map_labels(["n1"], MODEL, label_map=wnids, mask=write("mask.txt", "n1\nn9"))
    assert label_map.competitors.tolist() == [1, 2]


def test_names_that_are_numbers_are_names(write):
    # as the folders of ImageNet-V2, in the order in which they are sorted
    path = write("numbers.txt", "\n".join(map(str, range(12))))
    model = [f"class {number}" for number in range(12)]
    data = sorted(map(str, range(12)))
    assert targets(map_labels(data, model, label_map=path)) == [[int(name)] for name in data]


def test_mask_without_a_right_class_is_refused(write):
    with pytest.raises(SViTError, match="leaves out classes that are right: 1: fox"):
        map_labels(["fox", "dog"], MODEL, mask=write("mask.txt", "dog\ncat"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short.txt", "a\nb\n", "with 2 lines; it needs one for each of the model's 5 classes"),
        ("map.json", {"a": 0}, "does not have these labels: 1: b"),
        ("map.json", {"a": 0, "b": 5}, "has 5, which is no class of the model"),
        ("map.json", {"a": 0, "b": "hen"}, "has 'hen', which is no class of the model"),
        ("map.json", {"a": 0, "b": True}, "has True, which is no class of the model"),
        ("map.json", [0, 1], "an object, or a list of lists"),
        ("map.json", "{", "is not JSON"),
        ("map.json", "[" * 100_000, "is not JSON"),
    ],
    ids=["lines", "label", "number", "name", "boolean", "list", "json", "deep"],
)
def test_file_that_says_nothing_of_use_is_refused(write, name, content, message):
    with pytest.raises(SViTError, match=message):
        map_labels(["a", "b"], MODEL, label_map=write(name, content), image_names=lambda: ["x", "y"])


@pytest.mark.parametrize("argument", ["label_map", "mask"])
def test_file_that_is_not_there_is_refused(tmp_path, argument):
    with pytest.raises(SViTError, match=f"`{argument}` is .*missing.txt', which cannot be read"):
        map_labels(MODEL, MODEL, **{argument: tmp_path / "missing.txt"})


@pytest.mark.parametrize("is_by_image", [False, True])
def test_rows_that_are_not_there_are_refused(is_by_image):
    label_map = LabelMap(torch.arange(3)[:, None], "three", is_by_image=is_by_image)
    with pytest.raises(EvaluationError, match="goes from 0 to 2"):
        label_map.targets_of(torch.tensor([3]), torch.tensor([-1]))
