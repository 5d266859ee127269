# SPDX-License-Identifier: Apache-2.0
"""Pictures of a large and a small square, with masks and YOLO's boxes; the first of a split shows nothing."""

import numpy as np
from PIL import Image


def write_squares(folder, counts):
    """Write so many pictures of 90 x 70 pixels for each split; masks are 0, 1 (large) and 2 (small)."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("large\nsmall\n")
    for split, count in counts.items():
        for kind in ("images", "masks", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            mask, lines = np.zeros((70, 90), dtype=np.uint8), []
            for label, edge in ((0, 30), (1, 14)) if number else ():
                top, left = generator.integers(0, 70 - edge), generator.integers(45 * label, 45 * label + 45 - edge)
                mask[top : top + edge, left : left + edge] = label + 1
                centre = [(left + edge / 2) / 90, (top + edge / 2) / 70]
                lines.append(" ".join(map(str, [label, *centre, edge / 90, edge / 70])))
            pixels = generator.random((70, 90, 3)) * 60 + (mask[..., None] > 0) * 120
            Image.fromarray(mask).save(folder / split / "masks" / f"{number}.png")
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / "images" / f"{number}.png")
            (folder / split / "labels" / f"{number}.txt").write_text("\n".join(lines))
    return folder
