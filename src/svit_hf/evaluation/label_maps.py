# SPDX-License-Identifier: Apache-2.0
"""What the labels of a data set mean to a model: by name, by a file, or image by image.

Numbers are never compared: two data sets may number the same classes differently. Everything is read from local files.
"""

from dataclasses import dataclass

import torch

from svit_hf.errors import EvaluationError


NO_CLASS = -1


@dataclass(frozen=True)
class LabelMap:
    """Say which classes of a model are right for an image, and which it chooses among.

    Attributes:
        targets: The right classes, int64 of shape `(rows, n)`: a row for each label of the data, or for each image;
            what a row lacks is filled up with `NO_CLASS`. Images of a row without any class are left out.
        description: What was done, in a line for the user.
        is_by_image: Whether rows are images, by `sample_ids`, and not labels.
        competitors: The classes among which the model chooses, shape `(n,)`; all of them if `None`.
    """

    targets: torch.Tensor
    description: str
    is_by_image: bool = False
    competitors: torch.Tensor | None = None

    def targets_of(self, labels: torch.Tensor, sample_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return the right classes of images, shape `(B, n)`, filled up with `NO_CLASS`.

        Raises:
            EvaluationError: If there is no row for one of them.
        """
        rows = sample_ids if self.is_by_image else labels
        assert rows is not None, "a label map by image needs `sample_ids`"
        unknown = rows[(rows < 0) | (rows >= len(self.targets))].tolist()
        if unknown:
            kind = "image" if self.is_by_image else "label"
            raise EvaluationError(
                f"the data has {kind} {unknown[0]}, and the label map goes from 0 to {len(self.targets) - 1}."
            )
        return self.targets[rows]

    def excluded(self, num_classes: int) -> torch.Tensor:
        """Return which classes of the model the image cannot have: booleans of shape `(num_classes,)`."""
        excluded = torch.zeros(num_classes, dtype=torch.bool)
        if self.competitors is not None:
            excluded[:] = True
            excluded[self.competitors] = False
        return excluded
