# SPDX-License-Identifier: Apache-2.0
import io

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from evaluation_data import NAMES, logits_of, make_classifier, picture, write_parquet
from PIL import Image
from torch import nn

from svit_hf import SViTImageProcessorPil, cli
from svit_hf.data.options import DataOptions
from svit_hf.evaluation import parts, predict_images


TOLERANCE = 1e-5
NUM_IMAGES = 31


@pytest.fixture
def model(tmp_path):
    return make_classifier(tmp_path / "model")


@pytest.fixture
def pictures(tmp_path):
    """Write picture files, one of which is broken, and another file among them."""
    folder = tmp_path / "pictures"
    for number in range(NUM_IMAGES):
        file = folder / ("a" if number < 10 else "b") / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number)[: 60 if number == 4 else None])
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def predict(tmp_path, capsys):
    """Return a function that runs the command with small parts, and gives the rows of the folder and what was said."""

    def run(*arguments, output="out", status=0):
        folder = tmp_path / output
        options = ["--output", folder, "--part-size", "8", "--batch-size", "3", "--data.num-workers", "0"]
        command = ["predict", tmp_path / "model", *options, *arguments]
        assert cli.main([str(argument) for argument in command]) == status
        files = sorted(folder.glob("part-*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()], capsys.readouterr()

    return run


def test_files_hold_what_the_model_says(model, pictures, predict, tmp_path):
    rows, printed = predict(pictures, "--embeddings", "--top-k", "3")

    read = eval(printed.out.splitlines()[-1], {"datasets": datasets})["train"]
    assert read["sample_id"][:] == list(range(NUM_IMAGES))
    assert [row["sample_id"] for row in rows] == list(range(NUM_IMAGES))
    assert [row["source"][-10:] for row in rows] == [
        f"/{'a' if number < 10 else 'b'}/{number:03d}.png" for number in range(NUM_IMAGES)
    ]
    whole = [number for number in range(NUM_IMAGES) if number != 4]
    probabilities = logits_of(model, whole).softmax(dim=1)
    seen = []
    handle = model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    logits_of(model, whole)
    handle.remove()
    scores, ids = probabilities.topk(3)
    for index, number in enumerate(whole):
        row = rows[number]
        assert row["error"] is None
        assert row["top_ids"] == ids[index].tolist()
        assert row["top_labels"] == [NAMES[label] for label in ids[index]]
        assert row["label"] == row["top_labels"][0]
        assert row["top_scores"] == pytest.approx(scores[index].tolist(), rel=TOLERANCE)
        assert row["score"] == row["top_scores"][0]
        torch.testing.assert_close(torch.tensor(row["embedding"]), seen[index][0], rtol=TOLERANCE, atol=TOLERANCE)
    assert "truncated" in rows[4]["error"]
    assert [rows[4][name] for name in ("label", "score", "top_ids", "embedding")] == [None] * 4
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        *(f"part-{number:05d}.parquet" for number in range(4)),
        "prediction.json",
    ]
    assert f"{NUM_IMAGES} images, 1 of them broken, in 4 files" in printed.out


@pytest.mark.parametrize("num_workers", [0, 2])
def test_interrupted_prediction_continues_and_ends_as_one_without(
    model, pictures, predict, monkeypatch, tmp_path, num_workers
):
    workers = ["--data.num-workers", num_workers]
    expected, _ = predict(pictures, output="uninterrupted")
    write, written = parts._write, []

    def write_two(table, path):
        if len(written) == 2:
            # what a process that is killed leaves behind
            path.with_name(f".{path.name}.abc.tmp").write_bytes(b"PAR1")
            raise KeyboardInterrupt
        written.append(path.name)
        write(table, path)

    monkeypatch.setattr(parts, "_write", write_two)
    rows, _ = predict(pictures, *workers, status=130)
    assert len(rows) == 16
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in written}

    def write_all(table, path):
        written.append(path.name)
        write(table, path)

    monkeypatch.setattr(parts, "_write", write_all)
    rows, printed = predict(pictures, *workers)
    assert rows == expected
    assert sorted(written) == [f"part-{number:05d}.parquet" for number in range(4)]
    assert times == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in times}
    assert "complete" in printed.out

    _, printed = predict(pictures, *workers)
    assert len(written) == 4
    assert "nothing was left to do" in printed.out


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--top-k", "2"], "top_k"),
        (["--part-size", "9"], "part_size"),
        (["--image-size", "64"], "processing"),
        (["--precision", "bf16"], "precision"),
        (["--embeddings"], "embeddings"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_changed_arguments_are_refused(model, pictures, predict, arguments, changed):
    before, _ = predict(pictures)
    rows, printed = predict(pictures, *arguments, status=2)
    assert f"was begun with other {changed}." in printed.err
    assert rows == before


def test_changed_weights_and_pictures_are_refused(model, pictures, predict, tmp_path):
    predict(pictures)
    nn.init.ones_(model.classifier.bias)
    model.save_pretrained(tmp_path / "model")
    (pictures / "a" / "000.png").rename(pictures / "a" / "000b.png")
    _, printed = predict(pictures, status=2)
    assert "was begun with other images, weights." in printed.err


def test_size_of_batches_and_workers_may_change(model, pictures, predict):
    before, _ = predict(pictures)
    assert predict(pictures, "--batch-size", "5", "--data.num-workers", "1")[0] == before


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
@pytest.mark.parametrize("names", [NAMES, []], ids=["labelled", "unlabelled"])
def test_data_set_is_told_by_its_rows(model, predict, tmp_path, names, streaming):
    write_parquet(tmp_path / "data" / "test.parquet", NUM_IMAGES, names=names, rows_per_group=10)
    rows, _ = predict(tmp_path / "data", "--data.streaming", streaming)

    assert [row["top_ids"] for row in rows] == logits_of(model, range(NUM_IMAGES)).topk(5).indices.tolist()
    assert [row["sample_id"] for row in rows] == list(range(NUM_IMAGES))
    if streaming:
        assert [(row["source"][-11:], row["row"]) for row in rows[9:12]] == [
            ("row group 0", 9),
            ("row group 1", 0),
            ("row group 1", 1),
        ]
    else:
        assert [row["row"] for row in rows] == list(range(NUM_IMAGES))


def test_few_pictures_need_no_folder_and_are_shown(model, pictures, tmp_path, capsys):
    files = [str(pictures / "a" / f"{number:03d}.png") for number in (3, 4)]
    command = ["predict", str(tmp_path / "model"), *files, str(pictures / "b" / "01*.png"), "--top-k", "2"]
    assert cli.main([*command, "--data.num-workers", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*files, *(str(pictures / f"b/{n:03d}.png") for n in range(10, 20))]
    scores, ids = logits_of(model, [3]).softmax(dim=1).topk(2)
    best = [f"{NAMES[label]} {score:.1%}" for label, score in zip(ids[0], scores[0], strict=True)]
    assert lines[0].split(maxsplit=1)[1] == "  ".join(best)
    assert lines[1].split(maxsplit=1)[1].startswith("broken: OSError")


def test_what_cannot_be_predicted_is_refused(model, pictures, predict, tmp_path, capsys):
    for arguments, message in [
        ([], "`sources` is empty"),
        ([pictures, tmp_path / "nothing"], "where there are no pictures"),
        ([pictures, "--top-k", "0"], "`top_k` is 0"),
        ([pictures, "--part-size", "0"], "`part_size` is 0"),
    ]:
        _, printed = predict(*arguments, status=2)
        assert message in printed.err
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").touch()
    _, printed = predict(pictures, output="used", status=2)
    assert "holds 'mine.txt' but no prediction.json" in printed.err
    assert cli.main(["predict", str(tmp_path / "model"), str(pictures)]) == 2
    assert "there are 31" in capsys.readouterr().err


def test_run_gives_its_finished_model(pictures, predict, tmp_path):
    places = {"model": [], "best/raw": ["--weights", "raw"]}
    for seed, (place, arguments) in enumerate(places.items()):
        model = make_classifier(tmp_path / "model" / place, seed=seed)
        rows, _ = predict(pictures / "a", *arguments, output=f"out-{seed}")
        probabilities = logits_of(model, [0]).softmax(dim=1)
        assert rows[0]["score"] == pytest.approx(probabilities.max().item(), rel=TOLERANCE)


def test_pictures_in_memory_are_predicted_in_memory(model, pictures):
    processor = SViTImageProcessorPil(size={"shortest_edge": 32})
    images = [Image.open(io.BytesIO(picture(number))) for number in range(5)]
    predictions = predict_images(model, images, image_processor=processor, top_k=2, part_size=2, num_workers=0)
    rows = list(predictions.rows())
    scores, ids = logits_of(model, range(5)).softmax(dim=1).topk(2)
    assert [row["top_ids"] for row in rows] == ids.tolist()
    assert [row["score"] for row in rows] == pytest.approx(scores[:, 0].tolist(), rel=TOLERANCE)
    assert [row["source"] for row in rows] == [f"picture {number}" for number in range(5)]
    assert (predictions.num_images, predictions.num_broken, predictions.files) == (5, 0, ())
    # one alone, in a mode that the model is not made for, and a path
    for one in (images[0].convert("CMYK"), pictures / "a/000.png"):
        assert len(list(predict_images(model, one, image_processor=processor, num_workers=0).rows())) == 1


def test_output_that_is_not_finite_is_no_prediction(model, pictures, predict, tmp_path):
    nn.init.constant_(model.classifier.bias, torch.nan)
    model.save_pretrained(tmp_path / "model")
    rows, printed = predict(pictures / "a")
    assert {(row["label"], row["top_ids"]) for row in rows} == {(None, None)}
    assert [row["error"] for row in rows if "not finite" in row["error"]] == [
        "the output of the model is not finite"
    ] * 9
    assert "10 images, 10 of them broken" in printed.out


def test_linked_folders_are_read_and_hidden_files_are_not(model, pictures, predict, tmp_path):
    folder = tmp_path / "my pictures [2024]"
    (folder / "__MACOSX").mkdir(parents=True)
    for name in ("__MACOSX/a.png", ".hidden.png", "b.PNG"):
        (folder / name).write_bytes(picture(0))
    (folder / "linked").symlink_to(pictures / "a")
    (folder / "itself").symlink_to(folder)
    rows, _ = predict(folder)
    assert [row["source"] for row in rows] == [
        str(folder / "b.PNG"),
        *(str(folder / "linked" / f"{number:03d}.png") for number in range(10)),
    ]


def test_pictures_beyond_the_limits_of_the_options_are_broken(model, predict, tmp_path):
    (tmp_path / "pictures").mkdir()
    for name, size in (("small", (20, 20)), ("large", (40, 40))):
        Image.new("RGB", size).save(tmp_path / "pictures" / f"{name}.png")
    options = DataOptions(path=str(tmp_path / "pictures"), max_image_pixels=1000, num_workers=0)
    shown, _ = predict(tmp_path / "pictures", "--data.max-image-pixels", 1000)
    for rows in (shown, predict_images(tmp_path / "model", options).rows()):
        small, large = sorted(rows, key=lambda row: row["error"] is not None)
        assert small["label"] is not None
        assert "40x40 pixels; `max_image_pixels` allows 1000" in large["error"]
