# SPDX-License-Identifier: Apache-2.0
"""The video processor gives for every frame what the image processor gives, and pipelines take files with it."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import order_frames, tiny_video_config
from transformers import AutoVideoProcessor, pipeline

from svit_hf import SViTForVideoClassification, SViTImageProcessor, SViTImageProcessorPil, SViTVideoProcessor


SIZE = {"shortest_edge": 64}


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (6, 80, 96, 3), dtype=np.uint8)


@pytest.fixture
def video_file(frames, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "video.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("layout", ["array", "channels_first", "pictures", "two"])
def test_frames_are_prepared_as_pictures(frames, layout):
    videos = {
        "array": frames,
        "channels_first": torch.from_numpy(frames).permute(0, 3, 1, 2),
        "pictures": [Image.fromarray(frame) for frame in frames],
        "two": [frames, frames[:, :, ::-1].copy()],
    }[layout]
    prepared = SViTVideoProcessor(size=SIZE)(videos, do_sample_frames=False, return_tensors="pt")
    expected = SViTImageProcessor(size=SIZE)(list(frames), return_tensors="pt").pixel_values
    assert set(prepared) == {"pixel_values"}
    assert prepared.pixel_values.shape == (1 + (layout == "two"), 6, 3, 64, 64)
    torch.testing.assert_close(prepared.pixel_values[0], expected, rtol=0, atol=0)


def test_frames_are_sampled_evenly(frames):
    processor = SViTVideoProcessor(size=SIZE, num_frames=3)
    prepared = processor(frames, return_tensors="pt").pixel_values
    expected = processor(frames[::2], do_sample_frames=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(prepared, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"num_frames=7.*total_num_frames=6"):
        processor(frames, num_frames=7)


def test_settings_of_an_image_processor_load(tmp_path):
    SViTImageProcessorPil(size=SIZE, crop_pct=0.5, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    processor = SViTVideoProcessor.from_pretrained(tmp_path)
    assert (dict(processor.size), processor.crop_pct, processor.image_mean) == (SIZE, 0.5, (0.1, 0.2, 0.3))


@pytest.mark.parametrize("processor_class", [SViTVideoProcessor, SViTImageProcessorPil])
def test_pipeline_answers_what_the_model_says(frames, video_file, tmp_path, processor_class):
    model = order_frames(SViTForVideoClassification(tiny_video_config(num_frames=6))).eval()
    model.save_pretrained(tmp_path / "model")
    # the pipeline of Transformers 5.5 asks for no video processor
    for each in {SViTImageProcessorPil, processor_class}:
        each(size=SIZE).save_pretrained(tmp_path / "model")
    if processor_class is SViTVideoProcessor:
        assert type(AutoVideoProcessor.from_pretrained(tmp_path / "model")) is SViTVideoProcessor
    answers = pipeline("video-classification", model=str(tmp_path / "model"))(str(video_file), top_k=5)
    av = pytest.importorskip("av")
    with av.open(video_file) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    pixel_values = SViTImageProcessorPil(size=SIZE)(decoded, return_tensors="pt").pixel_values
    with torch.no_grad():
        scores = model(pixel_values).logits[0].softmax(-1)
    assert {answer["label"]: pytest.approx(answer["score"], abs=1e-4) for answer in answers} == {
        model.config.id2label[index]: score for index, score in enumerate(scores.tolist())
    }
