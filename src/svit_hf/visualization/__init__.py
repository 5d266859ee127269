# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model does: record one forward pass, then draw super tokens, attention and reasons from it."""

from svit_hf.visualization.drawings import (
    draw_mean_colours,
    draw_reliance,
    draw_super_token_at,
    draw_super_tokens,
    draw_view,
    draw_where_a_pixel_looks,
    lay_heat_over,
)
from svit_hf.visualization.looking import super_token_at, where_a_pixel_looks
from svit_hf.visualization.recording import LayerRecording, Recording, record
from svit_hf.visualization.sheet import draw_rows, draw_sheet
from svit_hf.visualization.super_tokens import (
    assign_places,
    draw_boundaries,
    fill_with_mean_colours,
    memberships,
)


__all__ = [
    "LayerRecording",
    "Recording",
    "assign_places",
    "draw_boundaries",
    "draw_mean_colours",
    "draw_reliance",
    "draw_rows",
    "draw_sheet",
    "draw_super_token_at",
    "draw_super_tokens",
    "draw_view",
    "draw_where_a_pixel_looks",
    "fill_with_mean_colours",
    "lay_heat_over",
    "memberships",
    "record",
    "super_token_at",
    "where_a_pixel_looks",
]
