# SPDX-License-Identifier: Apache-2.0
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from picture_data import encoded, write_samples
from square_pictures import write_squares

from svit_hf import cli
from svit_hf.data import opening as data_opening
from svit_hf.data.loading import EvaluationLoader, TrainingLoader
from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions
from svit_hf.data.shards import ShardOptions
from svit_hf.errors import DataError, SViTError
from svit_hf.tasks import opening, task_class
from svit_hf.tasks.detection import Detection
from svit_hf.tasks.evaluation import first_samples
from svit_hf.tasks.opening import find_split
from svit_hf.tasks.options import AnnotationOptions
from svit_hf.tasks.shards import write_annotated_shards
from svit_hf.tasks.sources import RowsSource, TaskStream, TaskTable


NUM_TRAIN, NUM_TEST = 13, 5
LABELS = {
    "semantic_segmentation": ["nothing", "large", "small"],
    "instance_segmentation": ["square"],
    "detection": ["large", "small"],
}
TASKS = list(LABELS)
NAMES = ("large", "small"), ("small", "large")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("squares"), {"train": NUM_TRAIN, "test": NUM_TEST})


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    """Return a function that gives the shards of a task: row groups of 3, files of 8 rows."""
    written = {}

    def write(task):
        if task not in written:
            written[task] = tmp_path_factory.mktemp(task) / "shards"
            options = ShardOptions(rows_per_shard=8, row_group_size=3)
            write_annotated_shards(task, DataOptions(str(folder)), written[task], options, LABELS[task])
        return written[task]

    return write


def source_of(task, options, split="train", **arguments):
    kind = task_class(task)
    return find_split(kind, options, split).source(kind(LABELS[task], 64, **arguments))


def samples_of(source):
    """Return the samples of a source, in their order."""
    return [source.decode(row) for row in source.rows_at(range(source.num_samples))]


def contents(sample):
    """Return what is in a sample, as something that can be compared and sorted."""
    target = sample.target
    parts = [target] if isinstance(target, np.ndarray) else [target.boxes, target.labels, target.masks, target.crowd]
    return [np.asarray(sample.picture).tobytes(), *(np.asarray(part).tolist() for part in parts)]


@pytest.mark.parametrize("task", TASKS)
def test_shards_hold_what_the_folder_holds_and_are_read_in_passing_or_not(task, folder, shards):
    expected = sorted(map(contents, samples_of(source_of(task, DataOptions(str(folder))))))
    # the options of annotations are in what was written
    changed = {"semantic_segmentation": {"reduce_labels": True}, "detection": {"box_format": "xyxy"}}.get(task, {})
    options = AnnotationOptions(**changed)
    for source, kind in (
        (source_of(task, DataOptions(str(shards(task))), annotations=options), RowsSource),
        (source_of(task, DataOptions(str(shards(task)), streaming=True), annotations=options), TaskStream),
        (source_of(task, DataOptions(f"{shards(task)}/train-*"), annotations=options), TaskTable),
    ):
        assert type(source) is kind
        found = [contents(sample) for sample in samples_of(source)]
        assert sorted(found) == expected
        assert found != expected
    assert source.locate(9) == ("train-00001-of-00002.parquet", 1)


@pytest.mark.parametrize("task", ["semantic_segmentation", "detection"])
def test_shards_name_their_classes(task, shards):
    for streaming in (False, True):
        found = find_split(task_class(task), DataOptions(str(shards(task)), streaming=streaming), "eval")
        assert (found.name, found.labels) == ("test", LABELS[task])


@pytest.mark.parametrize("streaming", [False, True])
def test_numbers_mean_what_shards_say(shards, streaming):
    path = str(shards("detection")) if streaming else f"{shards('detection')}/train-*"
    found = find_split(Detection, DataOptions(path, streaming=streaming), "train")
    for one, other in zip(*(samples_of(found.source(Detection(list(names), 64))) for names in NAMES), strict=True):
        assert other.target.labels.tolist() == [1 - label for label in one.target.labels]


def test_the_pictures_to_predict_are_found_beside_masks(shards):
    source = open_source(DataOptions(str(shards("semantic_segmentation"))), "eval", labelled=False)
    assert source.columns == ("image",)


def test_large_folders_of_parquet_files_are_streamed(shards, monkeypatch):
    monkeypatch.setattr(opening, "MAX_INDEXED_BYTES", 10)
    monkeypatch.setattr(data_opening, "MAX_INDEXED_BYTES", 10)
    options = {"semantic_segmentation": None, "detection": False}
    kinds = [type(source_of(task, DataOptions(str(shards(task)), streaming=on))) for task, on in options.items()]
    assert kinds == [TaskStream, RowsSource]


def test_ranks_share_the_batches_of_a_stream(shards):
    source = source_of("detection", DataOptions(str(shards("detection")), streaming=True))

    def batches(rank, world_size, start=0):
        options = {"batch_size": 2, "micro_batches": 2, "seed": 3, "shuffle_block": 4, "num_ranges": 2, "num_views": 2}
        loader = TrainingLoader(source, source.task.training_example, rank=rank, world_size=world_size, **options)
        return [list(loader.epoch(epoch, start)) for epoch in (0, 1)]

    for of_one, *of_two in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        assert len(of_one) == 6
        for number, batch in enumerate(of_one):
            other = of_two[number % 2][number // 2]
            assert torch.equal(batch["pixel_values"], other["pixel_values"])
            for one, two in zip(batch["labels"], other["labels"], strict=True):
                assert torch.equal(one["boxes"], two["boxes"])
    later = batches(0, 1, start=4)[1]
    assert [batch["sample_ids"].tolist() for batch in later] == [b["sample_ids"].tolist() for b in of_one[4:]]


def test_pictures_of_a_sheet_are_found_over_the_border_of_shards(shards):
    source = source_of(
        "semantic_segmentation", DataOptions(str(shards("semantic_segmentation")), streaming=True), "eval"
    )
    loader = EvaluationLoader(source, source.task.evaluation_example, batch_size=2)
    places = [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert [str(sample.origin) for sample in first_samples(loader)] == [
        f"test-00000-of-00001.parquet, row group {group}, row {row}" for group, row in places
    ]


def png(array):
    return encoded(np.asarray(array, dtype=np.uint8))


def stored(data):
    return {"bytes": data, "path": None}


PICTURE = png(np.full((70, 90, 3), 99))
IMAGE = {"image": datasets.Image()}
BOXES = {
    "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
    "category": datasets.List(datasets.Value("int64")),
}


def write_rows(file, features, rows, group=2):
    schema = datasets.Features(features).arrow_schema
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, row_group_size=group)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (
            "semantic_segmentation",
            {"mask": stored(png(np.zeros((70, 80))))},
            "the mask has 80 x 70 pixels, the image 90 x 70",
        ),
        ("semantic_segmentation", {"mask": None}, "there is no mask"),
        (
            "detection",
            {"objects": {"bbox": [[80, 9, 30, 9]], "category": [0]}},
            "object 0 has the box .* reaches out of",
        ),
        (
            "detection",
            {"objects": {"bbox": [[1, 1, 3, 3]], "category": [2]}},
            "an object has the class 2; the classes are",
        ),
    ],
    ids=["size", "none", "outside", "class"],
)
def test_wrong_annotations_of_streams_are_named(task, row, message, streaming, tmp_path):
    good = {"mask": stored(png(np.zeros((70, 90))))} if "mask" in row else {"objects": {"bbox": [], "category": []}}
    rows = [{"image": stored(PICTURE), **columns} for columns in (good, good, good, row)]
    features = {"mask": datasets.Image()} if "mask" in row else {"objects": BOXES}
    write_rows(tmp_path / "train.parquet", {**IMAGE, **features}, rows)
    source = source_of(task, DataOptions(str(tmp_path), streaming=streaming))
    place = "row group 1, row 1" if streaming else "row 3"
    with pytest.raises(DataError, match=rf"^train.parquet, {place}: .*{message}"):
        samples_of(source)


def test_broken_pictures_of_streams_are_named_and_left_out(tmp_path):
    rows = [
        {"image": stored(PICTURE[: 30 if number == 2 else None]), "mask": stored(png(np.zeros((70, 90))))}
        for number in range(4)
    ]
    write_rows(tmp_path / "test.parquet", {**IMAGE, "mask": datasets.Image()}, rows)
    source = source_of("semantic_segmentation", DataOptions(str(tmp_path), streaming=True), "eval")
    batches = list(EvaluationLoader(source, source.task.evaluation_example, batch_size=4))
    assert batches[0]["sample_ids"].tolist() == [0, 1, 3]
    (bad,) = batches[0]["bad_images"]
    assert (bad.sample_id, bad.source, bad.row) == (2, "test.parquet, row group 1", 0)


@pytest.mark.parametrize("streaming", [False, True])
def test_tars_of_pictures_with_masks_or_boxes(tmp_path, streaming):
    mask = np.zeros((70, 90))
    mask[10:30, 20:60] = 1
    objects = json.dumps({"objects": {"bbox": [[20, 10, 40, 20]], "category": ["small"]}}).encode()
    write_samples(tmp_path / "train.tar", [{"png": PICTURE, "mask.png": png(mask), "json": objects}] * 3)
    options = DataOptions(str(tmp_path), streaming=streaming)
    for sample in samples_of(source_of("semantic_segmentation", options)):
        np.testing.assert_array_equal(sample.target, mask)
    with pytest.raises(SViTError, match=r"`label_column` has to name the annotations: .* no column 'objects', only"):
        source_of("detection", options)
    options = DataOptions(str(tmp_path), streaming=streaming, label_column="json.objects")
    found = samples_of(source_of("detection", options))
    assert [sample.target.boxes.tolist() for sample in found] == [[[20, 10, 60, 30]]] * 3
    assert [sample.target.labels.tolist() for sample in found] == [[1]] * 3


def test_columns_of_other_names_are_named(tmp_path):
    rows = [{"pixels": stored(PICTURE), "annotation": stored(png(np.ones((70, 90))))}] * 2
    write_rows(tmp_path / "train.parquet", {"pixels": datasets.Image(), "annotation": datasets.Image()}, rows)
    options = DataOptions(str(tmp_path), image_column="pixels", label_column="annotation")
    assert [sample.target.min() for sample in samples_of(source_of("semantic_segmentation", options))] == [1, 1]
    with pytest.raises(SViTError, match="`label_column` is 'masks', which is no column; there are pixels, annotation"):
        source_of("semantic_segmentation", DataOptions(str(tmp_path), image_column="pixels", label_column="masks"))


def test_pictures_beside_a_table_of_their_boxes(tmp_path):
    (tmp_path / "train").mkdir()
    lines = []
    for number in range(3):
        (tmp_path / "train" / f"{number}.png").write_bytes(PICTURE)
        lines.append(
            json.dumps({"file_name": f"{number}.png", "objects": {"bbox": [[1, 2, 3, 4]], "category": [number % 2]}})
        )
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines))
    found = samples_of(source_of("detection", DataOptions(str(tmp_path))))
    assert [sample.target.labels.tolist() for sample in found] == [[0], [1], [0]]
    assert found[0].size == (70, 90)


def test_what_cannot_be_streamed_is_said(folder, tmp_path):
    with pytest.raises(
        SViTError, match=r"`streaming` is True, but .* is a folder of pictures, .*data shard --task detection"
    ):
        source_of("detection", DataOptions(str(folder), streaming=True))
    names = datasets.Features(
        {**IMAGE, "objects": {**BOXES, "category": datasets.List(datasets.ClassLabel(names=["a"]))}}
    )
    others = datasets.Features(
        {**IMAGE, "objects": {**BOXES, "category": datasets.List(datasets.ClassLabel(names=["b"]))}}
    )
    for number, features in enumerate((names, others)):
        row = {"image": stored(PICTURE), "objects": {"bbox": [], "category": []}}
        write_rows(tmp_path / f"train-{number}.parquet", features, [row])
    with pytest.raises(DataError, match=r"the split 'train' has files whose classes are \['a'\], and \['b'\]"):
        source_of("detection", DataOptions(str(tmp_path), streaming=True))


def test_shards_leave_broken_pictures_out_and_stop_at_wrong_annotations(tmp_path, capsys):
    folder = write_squares(tmp_path / "in", {"train": 4})
    (folder / "train" / "images" / "2.png").write_bytes(b"no picture")
    arguments = ["semantic_segmentation", DataOptions(str(folder)), tmp_path / "out", ShardOptions()]
    with pytest.raises(DataError, match=r"^\d.png, the whole mask: the mask has the values \[2\]"):
        write_annotated_shards(*arguments, ["nothing", "large"])
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    (folder / "classes.txt").unlink()
    with pytest.raises(SViTError, match=r"`labels` is empty, and .* does not name its classes"):
        write_annotated_shards(*arguments)
    written = write_annotated_shards(*arguments, LABELS["semantic_segmentation"])
    assert written["train"].num_images == 3
    arguments = [str(folder), str(tmp_path / "boxes")]
    assert cli.main(["data", "shard", *arguments, "--labels", "large"]) == 2
    assert "`labels` is ('large',); it is about masks and boxes" in capsys.readouterr().err
    arguments += ["--task", "detection", "--labels", "large", "small", "--annotations.clip-boxes"]
    assert cli.main(["data", "shard", *arguments]) == 0
    assert "train: 3 images in 1 files" in (shown := capsys.readouterr().out)
    assert "1 that cannot be decoded were left out, the first is 2.png, row 0" in shown
    assert written["train"].bad_images[0].source == "2.png"
