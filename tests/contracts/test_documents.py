# SPDX-License-Identifier: Apache-2.0
"""The Python in the documentation runs, its links lead somewhere, and the examples of the entry points are right."""

import doctest
import itertools
import re
from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from square_pictures import write_squares
from tiny import tiny_config

import svit_hf
from svit_hf.convert.key_mapping import to_official
from svit_hf.tasks.heads import find_head


ROOT = Path(__file__).parents[2]
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md")
    for path in sorted(ROOT.glob(pattern))
}
PYTHON = {
    name: re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE) for name, text in DOCUMENTS.items()
}
ENTRY_POINTS = [
    svit_hf.SViTConfig,
    svit_hf.SViTModel,
    svit_hf.SViTForImageClassification,
    svit_hf.SViTBackbone,
    svit_hf.SViTVideoConfig,
    svit_hf.SViTForVideoClassification,
    svit_hf.SuperTokenAttention,
    svit_hf.merge_into_super_tokens,
    svit_hf.save_with_code,
]


def make_model_folder(name):
    model = svit_hf.SViTForImageClassification(tiny_config())
    model.save_pretrained(name)
    svit_hf.SViTImageProcessorPil(size={"shortest_edge": 64}).save_pretrained(name)


def make_cats_and_dogs(name):
    names = {"id2label": {0: "dog", 1: "cat"}, "label2id": {"dog": 0, "cat": 1}}
    svit_hf.save_with_code(svit_hf.SViTForImageClassification(tiny_config(num_labels=2, **names)), name)


def make_published_folder(name):
    svit_hf.save_with_code(svit_hf.SViTForImageClassification(tiny_config()), name)
    Path(name, "README.md").write_text("---\nlicense: unknown\n---\n")


def make_official_checkpoint(name):
    model = svit_hf.SViTForImageClassification(svit_hf.SViTConfig.small(num_labels=2))
    torch.save({"model": {to_official(key): tensor for key, tensor in model.state_dict().items()}}, name)


def make_picture(name):
    Image.linear_gradient("L").convert("RGB").save(name)


def make_video(name):
    with av.open(name, "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=96, height=64)
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame(96, 64, "yuv420p")))
        container.mux(stream.encode())


def make_picture_folder(name):
    for label in ("cat", "dog"):
        folder = Path(name, "train", label)
        folder.mkdir(parents=True)
        make_picture(folder / "1.jpg")


def make_divided_folder(name):
    for split, number in (("train", 8), ("validation", 2)):
        for label in ("cat", "dog"):
            folder = Path(name, split, label)
            folder.mkdir(parents=True)
            for index in range(number):
                make_picture(folder / f"{index}.jpg")


def make_segmenter(name):
    size, names = 64, ["background", "cell"]
    model = svit_hf.build_model("semantic_segmentation", tiny_config(), names, size, width=32)
    model.save_pretrained(name)
    find_head("semantic_segmentation", None).make_processor((size, size)).save_pretrained(name)
    write_squares(Path("cells"), {"test": 1})


# what the reader of a snippet has by then: the words in which the snippet uses it, how to make it, and its name
GIVEN = [
    ('"runs/cells/model"', make_segmenter, "runs/cells/model"),
    ('="svit-small-224"', make_model_folder, "svit-small-224"),
    ('from_pretrained("svit-small-224"', make_model_folder, "svit-small-224"),
    ('checkpoint("svit_small.pth"', make_official_checkpoint, "svit_small.pth"),
    ('classify("picture.jpg")', make_picture, "picture.jpg"),
    ('classify("video.mp4")', make_video, "video.mp4"),
    ('Image.open("picture.jpg")', make_picture, "picture.jpg"),
    ('push_folder("svit-pets"', make_published_folder, "svit-pets"),
    ('evaluate_model("svit-cats-dogs"', make_cats_and_dogs, "svit-cats-dogs"),
    ('evaluate_model("svit-cats-dogs", "pictures"', make_picture_folder, "pictures"),
    ('data_dir="pictures"', make_picture_folder, "pictures"),
    ('path="pictures"', make_divided_folder, "pictures"),
]


# the Trainer of a reader without a GPU says so too
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning")
@pytest.mark.parametrize("name", [name for name, snippets in PYTHON.items() if snippets])
def test_snippets_run_one_after_the_other(name, tmp_path, monkeypatch):
    variables = {"__name__": "snippet"}
    for number, snippet in enumerate(PYTHON[name], 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        for words, make, file in GIVEN:
            if words in snippet and not Path(file).exists():
                make(file)
        exec(compile(snippet, f"{name}, snippet {number}", "exec"), variables)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_lead_somewhere(name):
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", DOCUMENTS[name])

    assert [target for target in targets if not ((ROOT / name).parent / target).exists()] == []


def test_reference_has_what_the_documents_import():
    pages = "\n".join(text for name, text in DOCUMENTS.items() if name.startswith("docs/reference/"))
    # without a list of members, a module is there with all that it has
    members = dict(re.findall(r"automodule:: (\S+)\n   :members: ?(.*)", pages))
    imported = {
        f"{module}.{name}"
        for snippet in itertools.chain(*PYTHON.values())
        for module, names in re.findall(r"^from (svit_hf[\w.]*) import (.+)$", snippet, re.MULTILINE)
        for name in names.split(", ")
    }
    assert len(imported) > 20
    missing = []
    for path in sorted(imported):
        module, _, name = path.rpartition(".")
        listed = members.get(module)
        if f":: {path}\n" not in pages and (listed is None or (listed and name not in listed.split(", "))):
            missing.append(path)
    assert missing == []


def test_read_me_names_every_module():
    text = DOCUMENTS["README.md"]
    package = ROOT / "src" / "svit_hf"
    modules = [*package.glob("[!_]*.py"), *(package / "model").glob("[!_]*.py")]
    folders = [path.parent for path in package.glob("*/__init__.py")]

    assert [path.name for path in modules if f"`{path.name}`" not in text] == []
    assert [path.name for path in folders if f"{path.name}/" not in text] == []


@pytest.mark.parametrize("entry_point", ENTRY_POINTS, ids=lambda entry_point: entry_point.__name__)
def test_example_of_entry_point(entry_point):
    examples = doctest.DocTestFinder(recurse=False).find(entry_point, entry_point.__name__, globs={})
    report = []
    results = [doctest.DocTestRunner(verbose=False).run(example, out=report.append) for example in examples]

    assert sum(result.attempted for result in results) > 0
    assert sum(result.failed for result in results) == 0, "".join(report)
