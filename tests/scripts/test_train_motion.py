# SPDX-License-Identifier: Apache-2.0
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from svit_hf import SViTForVideoClassification


SCRIPT = Path(__file__).parents[2] / "scripts" / "train_motion.py"


@pytest.fixture
def script():
    spec = spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_video(path, num_frames=6):
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=192, height=144)
        pixels = np.random.randint(0, 256, (9, 12, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        for _ in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())


def test_windows_move_as_their_names_say(script):
    # rows in the first channel, columns in the second
    rows, columns = torch.meshgrid(torch.arange(144), torch.arange(256), indexing="ij")
    scene = torch.stack([rows, columns, columns]).to(torch.uint8).expand(9, -1, -1, -1)
    rng = np.random.default_rng(0)
    for motion, (down, right, growth) in script.MOTIONS.items():
        for _ in range(10):
            pixels = (script.draw_clip([scene], motion, 4, 32, rng)[:, :2] + 1) * 127.5
            places, edges = pixels.mean((2, 3)), pixels[:, 0].amax((1, 2)) - pixels[:, 0].amin((1, 2))
            for values, direction in ((places[:, 0], down), (places[:, 1], right), (edges, growth)):
                steps = values.diff() * direction if direction else -values.diff().abs()
                assert (steps > 1).all() if direction else (steps > -0.5).all(), motion


def test_trains_tests_and_saves(script, tmp_path, capsys):
    write_video(tmp_path / "one.mp4")
    write_video(tmp_path / "two.mp4")
    options = ["--clips", tmp_path, "--test", "two.mp4", "--steps", 20, "--batch-size", 2, "--test-clips", 4]
    assert 0 <= script.main([*map(str, options), "--output-dir", str(tmp_path / "run")]) <= 1
    assert "of 4 clips of two.mp4" in capsys.readouterr().out
    saved = SViTForVideoClassification.from_pretrained(tmp_path / "run")
    assert saved.config.label2id == {name: index for index, name in enumerate(script.MOTIONS)}
    with pytest.raises(SystemExit):
        script.main([*map(str, options), "--test", "three.mp4"])
    assert "--test is ['three.mp4']" in capsys.readouterr().err
