# SPDX-License-Identifier: Apache-2.0
"""The part `data`: images per second of one worker, beside torchvision's pipeline."""

from collections.abc import Sequence
from importlib.util import find_spec

from svit_hf.benchmark.contestants import Session
from svit_hf.benchmark.measuring import Timing
from svit_hf.benchmark.results import Case, Cost, Memory, make_row
from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions
from svit_hf.data.throughput import AUGMENTATIONS, measure_loading, photographs, pick_images


def load_images(path: str, num_images: int) -> list[bytes]:
    """Return encoded images of the training split at `path`, or photographs if it is empty."""
    return pick_images(open_source(DataOptions(path), "train"), num_images) if path else photographs(num_images)


def measure_data(
    images: Sequence[bytes], session: Session, *, num_workers: int, batch_size: int, image_size: int
) -> list[Case]:
    """Measure decoding with the official augmentation, and with what of it needs no torchvision.

    Args:
        images: Encoded images.
        session: Gives the rounds.
        num_workers: Processes; 0 for this one.
        batch_size: Images in a batch.
        image_size: Edge of the results, in pixels.

    Returns:
        A case per augmentation; a call is an image, and times are those of one worker.

    Raises:
        SViTError: If there are too few images.
    """
    has_torchvision = find_spec("torchvision") is not None
    cases = []
    for name, augmentation in AUGMENTATIONS.items():
        title = f"image of a worker, {name}: num_workers {num_workers}, batch {batch_size}, {image_size} pixels"
        if augmentation.randaugment and not has_torchvision:
            session.left_out.append(f"torchvision, and ours with {name}: torchvision is not installed")
            continue
        session.say(title)
        measured = measure_loading(
            images,
            augmentation,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            repeats=session.repeats,
        )
        # pages that workers map are not seen here
        timings = {what: Timing(seconds, 1, None) for what, seconds in measured.items()}
        first = next(iter(timings.values()))
        rows = [
            make_row(what, "fp32", timing, first=first, cost=Cost(images=1), peaks=session.peaks, memory=Memory(0))
            for what, timing in timings.items()
        ]
        cases.append(Case("data", title, "training", batch_size, image_size, rows))
    return cases
