# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dense_models import LABELS, OPTIONS, pretrained_config
from picture_data import encoded
from PIL import Image

from svit_hf.errors import DataError, SViTError
from svit_hf.tasks.options import AnnotationOptions
from svit_hf.tasks.pictures import Augmentation, Origin, View
from svit_hf.tasks.semantic_segmentation import ConfusionMatrix, SemanticSegmentation
from svit_hf.tasks.task import Sample, TrainingExamples


ORIGIN = Origin("train.parquet", 3)
SIZE = (64, 96)


def row(mask, size=(90, 60)):
    image = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    return {"image": {"bytes": encoded(image)}, "mask": {"bytes": encoded(mask)}}


def blocks(values):
    """Return a mask of 60 x 90 pixels in blocks."""
    return np.kron(np.array(values, dtype=np.uint8), np.ones((60 // len(values), 90 // len(values[0])), np.uint8))


MASK = blocks([[0, 1, 2], [2, 255, 0]])


def counted(task, pairs):
    metric = task.metric()
    for index, (prediction, target) in enumerate(pairs):
        metric.update(index, prediction, Sample(Image.new("RGB", target.shape[::-1]), target, ORIGIN))
    return metric


def random_pairs(count, seed=0):
    random = np.random.default_rng(seed)
    for _ in range(count):
        shape = tuple(random.integers(5, 20, 2))
        target = random.choice([0, 1, 2, 255], shape)
        yield np.where(random.random(shape) < 0.5, target % 3, random.integers(0, 3, shape)), target


def test_rows_become_samples():
    task = SemanticSegmentation(LABELS, SIZE)
    sample = task.read(row(MASK), ORIGIN)
    assert sample.size == (60, 90)
    np.testing.assert_array_equal(sample.target, MASK)
    assert sample.target.dtype == np.int64


@pytest.mark.parametrize(
    ("options", "mask", "expected"),
    [
        ({"is_binary": True}, [[0, 255, 7]], [[0, 1, 1]]),
        ({"reduce_labels": True}, [[0, 1, 2]], [[255, 0, 1]]),
        ({"reduce_labels": True}, [[255, 1, 2]], [[255, 0, 1]]),
    ],
)
def test_other_ways_to_number_classes(options, mask, expected):
    task = SemanticSegmentation(["background", "cell"], SIZE, annotations=AnnotationOptions(**options))
    np.testing.assert_array_equal(task.read(row(blocks(mask)), ORIGIN).target, blocks(expected))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(blocks([[0, 3, 9]])), r"the mask has the values \[3, 9\]; the 3 classes are 0 to 2"),
        (row(MASK, size=(60, 90)), "the mask has 90 x 60 pixels, the image 60 x 90"),
        (row(MASK) | {"mask": None}, "there is no mask"),
        ({"mask": {"bytes": encoded(MASK)}}, "there is no image"),
        (row(np.zeros((60, 90, 3), dtype=np.uint8)), "the mask cannot be read: it has mode 'RGB'"),
    ],
    ids=["values", "size", "no mask", "no image", "colours"],
)
def test_masks_that_cannot_be_used_are_named(bad, message):
    with pytest.raises(DataError, match=rf"^train.parquet, row 3: .*{message}"):
        SemanticSegmentation(LABELS, SIZE).read(bad, ORIGIN)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS, {"is_binary": True}, "needs two"),
        (LABELS[:2], {"is_binary": True, "reduce_labels": True}, "both True"),
        ([str(number) for number in range(256)], {}, "allowed are 255"),
    ],
)
def test_impossible_options_are_refused(labels, options, message):
    with pytest.raises(SViTError, match=message):
        SemanticSegmentation(labels, SIZE, annotations=AnnotationOptions(**options))


def test_batches_of_masks_hold_the_classes_that_are_there():
    task = SemanticSegmentation(LABELS, SIZE, "mask2former")
    samples = [task.read(row(mask), ORIGIN) for mask in (MASK, blocks([[255]]), blocks([[2]]))]
    batch = task.collate([task.example(sample, View.whole(sample.size, SIZE)) for sample in samples])
    assert [classes.tolist() for classes in batch["class_labels"]] == [[0, 1, 2], [], [2]]
    assert [tuple(masks.shape) for masks in batch["mask_labels"]] == [(3, 64, 96), (0, 64, 96), (1, 64, 96)]
    assert batch["mask_labels"][2].min() == 1
    prepared = task.example(samples[0], View.whole(samples[0].size, SIZE))["labels"]
    assert torch.equal(batch["mask_labels"][0].sum(0), (prepared != 255).float())


@pytest.mark.parametrize("head", ["upernet", "mask2former", "maskformer"])
def test_models_train_and_predict_in_the_pictures_own_sizes(head):
    task = SemanticSegmentation(LABELS, SIZE, head)
    model = task.build_model(pretrained_config(), width=32, head_options=OPTIONS[head]).train()
    samples = [task.read(row(mask), ORIGIN) for mask in (MASK, blocks([[255, 1]]))]
    loss = task.loss(model, task.collate([task.augment(sample, 0, 0, 0) for sample in samples]))
    assert torch.isfinite(loss)
    model.eval()
    pictures = [Image.new("RGB", (90, 60)), Image.new("RGB", (31, 75))]
    predictions = task.predict(model, pictures)
    assert [prediction.shape for prediction in predictions] == [(60, 90), (75, 31)]
    assert all(
        prediction.dtype == np.int64 and 0 <= prediction.min() <= prediction.max() < 3 for prediction in predictions
    )
    assert task.draw(pictures[1], predictions[1]).size == (31, 75)


def test_confusion_is_that_of_a_count_pixel_by_pixel():
    pairs = list(random_pairs(6))
    metric = counted(SemanticSegmentation(LABELS, SIZE), pairs)
    counts = [[0] * 3 for _ in range(3)]
    for prediction, target in pairs:
        for said, true in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True):
            if true != 255:
                counts[true][said] += 1
    assert metric.counts.tolist() == counts
    numbers = metric.compute()
    for label in range(3):
        hit = counts[label][label]
        true, said = sum(counts[label]), sum(line[label] for line in counts)
        assert numbers[f"iou_{LABELS[label]}"] == pytest.approx(hit / (true + said - hit))
        assert numbers[f"dice_{LABELS[label]}"] == pytest.approx(2 * hit / (true + said))
    assert numbers["mean_iou"] == pytest.approx(np.mean([numbers[f"iou_{label}"] for label in LABELS]))
    total = sum(map(sum, counts))
    assert numbers["pixel_accuracy"] == pytest.approx(sum(counts[label][label] for label in range(3)) / total)


def test_classes_that_are_nowhere_count_in_no_mean():
    metric = counted(SemanticSegmentation(LABELS, SIZE), [(np.array([[0, 0]]), np.array([[0, 255]]))])
    numbers = metric.compute()
    assert numbers["mean_iou"] == numbers["mean_dice"] == 1
    assert np.isnan(numbers["iou_hole"])
    with pytest.raises(SViTError, match="no pixel was counted"):
        ConfusionMatrix(LABELS).compute()


@pytest.mark.parametrize(
    ("images", "masks", "split"),
    [
        ("train/images", "train/masks", "train"),
        ("images/val", "masks/val", "validation"),
        ("images", "masks", "train"),
    ],
)
def test_folders_of_pictures_and_masks(images, masks, split, tmp_path):
    for folder in (images, masks):
        (tmp_path / folder).mkdir(parents=True)
    for name, value in (("b", 1), ("a", 2)):
        Image.new("RGB", (90, 60)).save(tmp_path / images / f"{name}.jpg")
        Image.fromarray(blocks([[value]])).save(tmp_path / masks / f"{name}.png")
    (tmp_path / images / ".hidden.png").write_bytes(b"")
    (tmp_path / images / "notes.txt").write_text("")
    rows = SemanticSegmentation.find_rows(tmp_path, split)
    task = SemanticSegmentation(LABELS, SIZE)
    assert [task.read(*rows[index]).target.max() for index in range(len(rows))] == [2, 1]
    (tmp_path / masks / "a.png").unlink()
    with pytest.raises(DataError, match=r"masks.* has no mask for 'a.jpg'"):
        SemanticSegmentation.find_rows(tmp_path, split)


def test_parquet_files(tmp_path):
    for part in range(2):
        table = pa.Table.from_pylist([row(blocks([[part]])), row(blocks([[2]]))])
        pq.write_table(table, tmp_path / f"train-0000{part}-of-00002.parquet")
    rows = SemanticSegmentation.find_rows(tmp_path, "train")
    task = SemanticSegmentation(LABELS, SIZE)
    assert [task.read(*rows[index]).target.max() for index in range(len(rows))] == [0, 2, 1, 2]
    assert str(rows.origins[2]) == "train-00001-of-00002.parquet, row 0"


def test_data_that_are_not_there_are_named(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"no split 'train': it holds \['pictures'\]; expected is train.parquet"):
        SemanticSegmentation.find_rows(tmp_path, "train")
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"train.parquet: the file cannot be read"):
        SemanticSegmentation.find_rows(tmp_path, "train")


def test_examples_for_a_loader_change_with_the_epoch(tmp_path):
    pq.write_table(pa.Table.from_pylist([row(MASK)] * 4), tmp_path / "train.parquet")
    task = SemanticSegmentation(LABELS, SIZE, augmentation=Augmentation(vertical_flip=0.5))
    examples = TrainingExamples(task, task.find_rows(tmp_path, "train"), seed=3)
    loader = torch.utils.data.DataLoader(examples, batch_size=2, collate_fn=task.collate)
    first, again = ([batch["labels"] for batch in loader] for _ in range(2))
    assert len(examples) == 4
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    examples.set_epoch(1)
    assert not any(torch.equal(one, batch["labels"]) for one, batch in zip(first, loader, strict=True))
