# SPDX-License-Identifier: Apache-2.0
"""The demo in a real browser: upload, answer, sliders, a click, bad files, and what a stranger must not reach."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from browser import NEEDS_CHROMIUM, keep_screenshot, open_page
from PIL import Image


pytest.importorskip("gradio", reason="gradio is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.process, *NEEDS_CHROMIUM]


@pytest.fixture
def serve(tmp_path):
    """Return a function that starts `python ARGUMENTS` and gives the address that it says."""
    processes = []

    def start(*arguments, **options):
        log = (tmp_path / f"log-{len(processes)}.txt").open("w+")
        # as in tests/conftest.py: torchao writes to stderr
        environment = os.environ | {"SVIT_TEST_HIDDEN_PACKAGES": "torchao", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=log, stderr=log, cwd=tmp_path, env=environment, **options
        )
        processes.append((process, log))
        for _ in range(600):
            written = Path(log.name).read_text()
            if found := re.search(r"Open (http://\S+)", written):
                return found[1]
            assert process.poll() is None, written
            time.sleep(0.2)
        raise AssertionError(f"no address within two minutes:\n{written}")

    yield start
    for process, log in processes:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.fixture
def page():
    with open_page() as page:
        yield page


def source_of(page, drawing):
    return page.locator(f"#drawing-{drawing} img").get_attribute("src")


def wait_for_other(page, drawing, before):
    page.wait_for_function(
        "([id, before]) => (document.querySelector(id)?.src ?? before) !== before",
        arg=[f"#drawing-{drawing} img", before],
    )


def test_a_visit(serve, page, model_dir, picture_file, tmp_path):
    page.goto(serve("-m", "svit_hf", "demo", str(model_dir), str(model_dir), "--examples", picture_file))
    page.wait_for_selector("#about h1")

    # an upload is answered by both models
    page.locator("#upload input[type=file]").set_input_files(picture_file)
    for number in range(2):
        page.wait_for_selector(f"#answer-{number} .answer li")
        page.wait_for_selector(f"#drawing-{number}-4 img")
    assert page.locator("#answer-0 .answer li").count() == 5
    assert "<b>cat" in page.locator("#answer-0").inner_text()
    assert page.locator("#layer-text-0").inner_text().strip().startswith("16 x 16 tokens in cells of 4")

    # the cell changes text and drawing of its own model alone
    before, other = source_of(page, "0-1"), source_of(page, "1-1")
    page.locator("#cell-0 input[type=number]").fill("8")
    page.locator("#cell-0 input[type=number]").press("Enter")
    wait_for_other(page, "0-1", before)
    page.wait_for_function("document.querySelector('#layer-text-0').innerText.includes('2 x 2 super tokens')")
    assert source_of(page, "1-1") == other
    page.locator("#reset-0").click()
    page.wait_for_function("document.querySelector('#layer-text-0').innerText.includes('4 x 4 super tokens')")
    assert page.locator("#cell-0 input[type=number]").input_value() == "4"

    # a slider that is drawn: to the second stage, which has two layers
    page.locator("#stage-0 input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#layer-text-0').innerText.includes('8 x 8 tokens in cells of 2')")
    page.wait_for_selector("#layer-0 input[type=range]")

    # a click in the upper right corner moves the point of both
    before = [source_of(page, "0-4"), source_of(page, "1-4")]
    box = page.locator("#drawing-0-0 img").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    for number in range(2):
        wait_for_other(page, f"{number}-4", before[number])
    ring = Image.open(download(page, source_of(page, "0-0"), tmp_path)).convert("L")
    x, y = 0.9 * ring.width, 0.1 * ring.height
    around = ring.crop((int(x) - 12, int(y) - 12, int(x) + 12, int(y) + 12))
    assert around.getextrema()[0] < 60
    assert around.getextrema()[1] > 230
    keep_screenshot(page, tmp_path, "two-models")

    # files that are no pictures
    (tmp_path / "bad.png").write_text("no picture")
    page.locator("#upload button[aria-label*=lear], #upload button[title*=lear]").first.click()
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "bad.png")
    page.wait_for_selector("#message .error")
    assert "This file cannot be shown: it is no picture" in page.locator("#message").inner_text()
    assert "Traceback" not in page.content()
    assert page.locator("#answer-0 .answer").count() == 0
    keep_screenshot(page, tmp_path, "bad-file")

    # an example mends it
    page.locator("#examples img").first.click()
    page.wait_for_selector("#answer-0 .answer li")
    assert page.locator("#message .error").count() == 0
    assert page.foreign == []


def download(page, url, folder):
    content = page.request.get(url).body()
    (folder / "downloaded.jpg").write_bytes(content)
    return folder / "downloaded.jpg"


def test_no_file_of_the_machine_is_reachable(serve, model_dir, picture_file, tmp_path):
    address = serve("-m", "svit_hf", "demo", str(model_dir), "--examples", picture_file)
    (tmp_path / "secret.txt").write_text("secret")
    for path in ("/etc/passwd", str(tmp_path / "secret.txt"), str(model_dir / "config.json"), "../etc/passwd"):
        with pytest.raises(HTTPError) as refused:
            urlopen(f"{address}gradio_api/file={path}")
        assert refused.value.code in (403, 404)
    # as an input of an event, in the place of an upload
    config = json.load(urlopen(f"{address}config"))
    upload = next(
        component["id"] for component in config["components"] if component["props"].get("elem_id") == "upload"
    )
    number = next(event["id"] for event in config["dependencies"] if event["inputs"] == [upload])
    file = {"path": str(tmp_path / "secret.txt"), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file], "fn_index": number, "session_hash": "stranger"}
    join = Request(f"{address}gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"})
    urlopen(join)
    answer = urlopen(f"{address}gradio_api/queue/data?session_hash=stranger").read().decode()
    assert '"success":false' in answer
    assert "secret" not in answer.replace("secret.txt", "")


def test_large_upload_is_refused(serve, page, model_dir, tmp_path):
    page.goto(serve("-m", "svit_hf", "demo", str(model_dir)))
    (tmp_path / "large.png").write_bytes(b"\0" * (17 << 20))
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "large.png")
    page.wait_for_selector("text=/exceeds|too large|maximum/i")


def test_space_runs_in_a_folder_of_its_own(serve, page, viewer, picture_file, tmp_path):
    from svit_hf.demo.space import write_space

    write_space([viewer], [Path(picture_file)], tmp_path / "space")
    page.goto(serve(str(tmp_path / "space/app.py")))
    page.locator("#examples img").first.click()
    page.wait_for_selector("#answer-0 .answer li")
    page.wait_for_selector("#drawing-0-4 img")
    keep_screenshot(page, tmp_path, "space")
    assert page.foreign == []
