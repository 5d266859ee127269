# SPDX-License-Identifier: Apache-2.0
"""Small data sets of real files: pictures whose colour tells their number."""

import io
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from svit_hf.data.decoding import decode_image


def encoded(image, format="PNG", **options):
    """Return a picture, or an array of pixels, as the bytes of a file."""
    data = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(data, format, **options)
    return data.getvalue()


def picture(number, format="PNG", size=(12, 10)):
    """Return an encoded picture that is its number in red."""
    return encoded(np.full((size[1], size[0], 3), (number % 256, 128, number // 256), dtype=np.uint8), format)


def rows_of(source):
    """Return the rows of a source, in their order."""
    return [row for shard, size in enumerate(source.shard_sizes) for row in source.rows(shard, 0, size)]


def number_of(row):
    """Return the number that the picture of a row shows."""
    return decode_image(row.image).getpixel((0, 0))[0]


def write_parquet(file, numbers, rows_per_group=1000, names=("even", "odd"), broken=(), **columns):
    """Write pictures of numbers, labelled by their remainder, or with what `columns` holds.

    `broken` numbers have half a picture. Without `names` there are no labels.
    """
    images = [{"bytes": picture(n)[: 30 if n in broken else None], "path": None} for n in numbers]
    features, values = {"image": datasets.Image()}, {"image": images}
    if names:
        features["label"], values["label"] = datasets.ClassLabel(names=list(names)), [n % len(names) for n in numbers]
    for name, column in columns.items():
        values[name] = column
        features[name] = datasets.Value(pa.array(column).type.__str__())
    schema = datasets.Features(features).arrow_schema
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(values, schema=schema), file, row_group_size=rows_per_group)


def write_tar(file, numbers, num_classes=3):
    """Write pictures of numbers with their remainders as webdataset samples; without classes, pictures alone."""
    samples = [{"png": picture(number)} for number in numbers]
    if num_classes:
        samples = [
            {**sample, "cls": str(n % num_classes).encode()} for n, sample in zip(numbers, samples, strict=True)
        ]
    write_samples(file, samples)


def write_samples(file, samples):
    """Write webdataset samples, each of which has the content of its files by their suffixes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for number, parts in enumerate(samples):
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"part.1/sample{number:05d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def write_folder(folder, numbers, names=("cat", "train")):
    """Write pictures of numbers into folders of classes."""
    for number in numbers:
        name = names[number % len(names)]
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{name}_{number:03d}.png").write_bytes(picture(number))
