# SPDX-License-Identifier: Apache-2.0
import pytest
from picture_data import write_parquet

from svit_hf.data.augmentation import TrainingTransform
from svit_hf.data.options import AugmentationOptions, DataOptions
from svit_hf.data.sources import open_source
from svit_hf.data.throughput import measure_loading
from svit_hf.errors import SViTError


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_rates_are_of_the_same_images(tmp_path, streaming):
    write_parquet(tmp_path / "train.parquet", range(20), rows_per_group=7)
    source = open_source(DataOptions(str(tmp_path), streaming=streaming), "train")
    transform = TrainingTransform((16, 16), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), AugmentationOptions())
    rates = measure_loading(source, transform, num_images=16, batch_size=8, repeats=2)
    assert [rate.what for rate in rates] == ["decode", "decode and augment", "torchvision's pipeline"]
    decode, augment, plain = (rate.images_per_second for rate in rates)
    assert decode > augment > 0
    assert [rate.ratio for rate in rates] == pytest.approx([decode / plain, augment / plain, 1])
    with pytest.raises(SViTError, match="`batch_size` 32"):
        measure_loading(source, transform)
