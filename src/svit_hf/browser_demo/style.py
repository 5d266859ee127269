# SPDX-License-Identifier: Apache-2.0
"""Words and looks of the page."""

TITLE = "Super tokens"
ABOUT = (
    "An SViT gathers the tokens of a picture in a few super tokens, which follow what is in it. Choose a picture, and "
    "click a point of any drawing to see where it looks. A cell is how many tokens, in each direction, share a super "
    "token at first. It is no weight: change it, and the answer and its time change with it."
)

# after the colours of gradio, which follow the light or dark of the visitor
STYLE = """
.gradio-container { max-width: 1640px !important; margin: 0 auto !important; }
#about h1 { font-size: 1.7rem; font-weight: 650; letter-spacing: -.01em; margin: 0; }
#about p { color: var(--body-text-color-subdued); max-width: 52rem; margin: .25rem 0 .5rem; line-height: 1.5; }
.model h2 { font-size: 1.15rem; font-weight: 650; margin: 0; overflow-wrap: anywhere; }
.answer { list-style: none; margin: 0; padding: 0; font-size: .95rem; }
.answer li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin: 0 0 .55rem; }
.answer .label { overflow-wrap: anywhere; }
.answer li:first-child .label { font-weight: 650; }
.answer .share { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.answer .bar { flex-basis: 100%; height: 7px; border-radius: 4px; background: var(--border-color-primary); }
.answer .bar span { display: block; height: 100%; border-radius: 4px; background: #c2571a; min-width: 2px; }
.cost, .hint, .layer-text { color: var(--body-text-color-subdued); font-size: .9rem; margin: .25rem 0; }
.cost b { color: var(--body-text-color); font-variant-numeric: tabular-nums; }
.drawings { display: grid !important; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: .8rem; }
.drawing { min-width: 0 !important; }
.drawing img { cursor: crosshair; width: 100%; object-fit: contain; }
.note, .error { font-size: .95rem; padding: .6rem .8rem; border-radius: 8px; margin: 0; }
.note { background: var(--background-fill-secondary); }
.error { background: #fdecea; color: #8c1d12; border: 1px solid #f2b8b0; }
"""
