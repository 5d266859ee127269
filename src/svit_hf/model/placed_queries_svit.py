# Copyright 2026 The svit_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Queries of Mask2Former that start at pixels of the picture, and its loss at all pixels.

As published, a query is a learned vector, the same for all pictures, and a mask is where it agrees with the embeddings
of pixels, which know nothing of places: trained from random weights, every query finds all objects that look the same,
and little is learned. Here a map says of each pixel how likely the centre of an object is there; the queries
start as the features of its highest peaks; and a mask is an ellipse about its peak, whose centre, axes and direction
the query learns, plus what it agrees with.

Source: maps of centres and their loss are those of CenterNet (Zhou et al. 2019, arXiv 1904.07850, section 3); queries
    from pixels that say that there is an object, those of FastInst (He et al. 2023, arXiv 2303.08594, section 3.2).
    The ellipses are ours.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init
from transformers.models.mask2former import modeling_mask2former as published


# of masks before anything is learned, in pixels of the map of embeddings, and their logit at the centre
START_RADIUS, START_LOGIT = 4.0, 3.0
# standard deviation of a bell about a centre, relative to the root of the object's area, and in pixels at least
CENTER_SPREAD, SMALLEST_SPREAD = 0.2, 0.6
# how likely a centre is at a pixel before anything is learned, as a logit: about 2 %
START_CENTER = -4.0


def find_peaks(scores: Tensor, count: int) -> Tensor:
    """Return the places `(B, count)` of the highest local maxima of `scores` `(B, 1, H, W)` in the flattened map."""
    scores = scores.detach()
    is_peak = functional.max_pool2d(scores, 3, 1, 1) == scores
    below = scores.min() - scores.max() - 1
    # where there are fewer peaks than queries, the rest are the highest other pixels
    return torch.where(is_peak, scores, scores + below).flatten(1).topk(min(count, scores[0].numel()), dim=1).indices


class PlacedMaskPredictor(published.Mask2FormerMaskPredictor):
    """What makes masks of queries, which starts with a disc about the peak of each."""

    def __init__(self, hidden_size: int, num_heads: int, mask_feature_size: Any):
        super().__init__(hidden_size, num_heads, mask_feature_size)
        self.ellipse = nn.Linear(hidden_size, 5)

    def forward(
        self, outputs: Tensor, pixel_embeddings: Tensor, attention_mask_target_size: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Return masks `(B, N, H, W)` of queries `(N, B, C)`, and where the next layer is not to look.

        The last channel of `pixel_embeddings` has the scores of centres.
        """
        queries, embeddings = outputs.transpose(0, 1), pixel_embeddings[:, :-1]
        peaks = find_peaks(pixel_embeddings[:, -1:], len(outputs))
        masks = torch.einsum("bnc,bchw->bnhw", self.mask_embedder(queries), embeddings)
        masks = masks + START_LOGIT - self._distances(queries, peaks, masks.shape[-2:])
        seen = functional.interpolate(masks.detach(), size=attention_mask_target_size, mode="bilinear")
        is_outside = (seen < 0).flatten(2).repeat_interleave(self.num_heads, dim=0)
        return masks, is_outside

    def _distances(self, queries: Tensor, peaks: Tensor, size: torch.Size) -> Tensor:
        """Return squared distances of pixels from the peaks, in the metric of the ellipses, `(B, N, H, W)`."""
        across, down, narrow, flat, skew = self.ellipse(queries)[..., None].unbind(2)
        x = torch.arange(size[1], device=peaks.device) - (peaks % size[1])[..., None] - across
        y = torch.arange(size[0], device=peaks.device) - (peaks // size[1])[..., None] - down
        first = (narrow.clamp(-6, 3).exp() * x)[:, :, None] + (skew * y)[..., None]
        second = flat.clamp(-6, 3).exp() * y
        return (first.square() + second.square()[..., None]) / START_RADIUS**2


class PlacedDecoder(published.Mask2FormerMaskedAttentionDecoder):
    """The decoder of Mask2Former, whose queries start at peaks of the map of centres."""

    def __init__(self, config: Any):
        super().__init__(config)
        width, features = config.hidden_dim, config.mask_feature_size
        self.mask_predictor = PlacedMaskPredictor(width, config.num_attention_heads, features)
        self.centers = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1), nn.ReLU(), nn.Conv2d(features, 1, kernel_size=1)
        )
        self.content = nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width))
        self.place = nn.Linear(width, width)

    def forward(  # type: ignore[override]
        self,
        *,
        inputs_embeds: Tensor,
        pixel_embeddings: Tensor,
        query_position_embeddings: Tensor,
        multi_stage_positional_embeddings: Any,
        feature_size_list: list[torch.Size],
        **options: Any,
    ) -> Any:
        """Decode as published, from features and positions of the peaks plus those that are learned for each rank."""
        scores = self.centers(pixel_embeddings)
        peaks = find_peaks(scores, len(inputs_embeds))
        batch, width = torch.arange(len(peaks), device=peaks.device)[:, None], scores.shape[-1]
        content = self.content(pixel_embeddings.flatten(2).transpose(1, 2)[batch, peaks]).transpose(0, 1)
        # of the finest level that is attended to
        rows, columns = (
            torch.div(index * fine, coarse, rounding_mode="floor")
            for index, fine, coarse in zip(
                (peaks // width, peaks % width), feature_size_list[-1], scores.shape[-2:], strict=True
            )
        )
        positions = multi_stage_positional_embeddings[-1][:, 0]
        place = self.place(positions[rows * feature_size_list[-1][1] + columns]).transpose(0, 1)
        return super().forward(
            inputs_embeds=inputs_embeds[: len(content)] + content,
            pixel_embeddings=torch.cat([pixel_embeddings, scores.detach()], dim=1),
            query_position_embeddings=query_position_embeddings[: len(content)] + place,
            multi_stage_positional_embeddings=multi_stage_positional_embeddings,
            feature_size_list=feature_size_list,
            **options,
        )

    def reset(self) -> None:
        """Start with no centre anywhere, and masks that are discs."""
        last: Any = self.centers[2]
        predictor: Any = self.mask_predictor
        init.constant_(last.bias, START_CENTER)
        init.zeros_(predictor.ellipse.weight)
        init.zeros_(predictor.ellipse.bias)


def center_loss(scores: Tensor, mask_labels: Sequence[Tensor]) -> Tensor:
    """Return the focal loss of scores of centres `(B, 1, H, W)` against the masks `(N, h, w)` of each picture."""
    size = (scores.shape[-2], scores.shape[-1])
    targets = torch.stack([_center_map(masks.to(scores), size) for masks in mask_labels])[:, None]
    scores = scores.float()
    likely, is_center = scores.sigmoid(), targets == 1
    losses = torch.where(
        is_center,
        (1 - likely) ** 2 * functional.softplus(-scores),
        (1 - targets) ** 4 * likely**2 * functional.softplus(scores),
    )
    return losses.sum() / is_center.sum().clamp(min=1)


def _center_map(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a map in which a bell is at the centre of each mask, with exactly 1 at the pixel of the centre."""
    if not len(masks):
        return masks.new_zeros(size)
    masks = functional.adaptive_avg_pool2d(masks, size).float()
    rows, columns = (torch.arange(edge, device=masks.device) + 0.5 for edge in size)
    areas = masks.sum((1, 2)).clamp(min=1e-3)
    y = (masks.sum(2) @ rows / areas)[:, None]
    x = (masks.sum(1) @ columns / areas)[:, None]
    spread = (CENTER_SPREAD * areas.sqrt()).clamp(min=SMALLEST_SPREAD)[:, None, None]
    squares = (rows - y).square()[:, :, None] + (columns - x).square()[:, None]
    bells = (-squares / (2 * spread**2)).exp().amax(0)
    bells[y[:, 0].long().clamp(0, size[0] - 1), x[:, 0].long().clamp(0, size[1] - 1)] = 1
    return bells


class AllPixelsMatcher(nn.Module):
    """The matcher of Mask2Former, which compares masks at all pixels of their map and not at some random points."""

    def __init__(self, matcher: Any):
        super().__init__()
        self.cost_class, self.cost_mask, self.cost_dice = matcher.cost_class, matcher.cost_mask, matcher.cost_dice

    @torch.no_grad()
    def forward(
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor],
    ) -> list[tuple[Tensor, Tensor]]:
        """Return for each picture the places of queries and of the objects that belong to them."""
        return [
            self._match(logits.float(), classes.float().softmax(-1)[:, labels], masks.to(logits).float())
            for logits, classes, masks, labels in zip(
                masks_queries_logits, class_queries_logits, mask_labels, class_labels, strict=True
            )
        ]

    def _match(self, logits: Tensor, likely: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        if not len(masks):
            nothing = torch.zeros(0, dtype=torch.int64)
            return nothing, nothing
        masks = functional.adaptive_avg_pool2d(masks, (logits.shape[-2], logits.shape[-1])).flatten(1).T
        logits = logits.flatten(1)
        entropies = (functional.softplus(logits).sum(1, keepdim=True) - logits @ masks) / len(masks)
        shares = logits.sigmoid()
        dice = (2 * shares @ masks + 1) / (shares.sum(1, keepdim=True) + masks.sum(0) + 1)
        costs = self.cost_mask * entropies - self.cost_dice * dice - self.cost_class * likely
        # what is not finite is matched last
        assign: Any = published.linear_sum_assignment  # of scipy, which only training needs
        queries, objects = assign(costs.nan_to_num(nan=1e9, posinf=1e9, neginf=1e9).cpu().numpy())
        return torch.from_numpy(queries), torch.from_numpy(objects)


class AllPixelsLoss(published.Mask2FormerLoss):
    """The loss of Mask2Former at all pixels of the annotated masks.

    Of an object as small as a thousandth of the picture, a thousand random points see one pixel.
    """

    def __init__(self, config: Any, weight_dict: dict[str, float]):
        super().__init__(config, weight_dict)
        matcher: Any = AllPixelsMatcher(self.matcher)
        self.matcher = matcher

    def loss_masks(
        self, masks_queries_logits: Tensor, mask_labels: list[Tensor], indices: Any, num_masks: Any
    ) -> dict[str, Tensor]:
        """Return cross entropy and dice of matched masks."""
        logits = masks_queries_logits[self._get_predictions_permutation_indices(indices)]
        if not len(logits):
            nothing = masks_queries_logits.sum() * 0
            return {"loss_mask": nothing, "loss_dice": nothing}
        masks = torch.cat([masks[objects] for masks, (_, objects) in zip(mask_labels, indices, strict=True)])
        logits = functional.interpolate(logits[:, None], size=masks.shape[-2:], mode="bilinear").flatten(1)
        masks = masks.to(logits).flatten(1)
        return {
            "loss_mask": published.sigmoid_cross_entropy_loss(logits, masks, num_masks),
            "loss_dice": published.dice_loss(logits, masks, num_masks),
        }
