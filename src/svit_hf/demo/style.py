# SPDX-License-Identifier: Apache-2.0
"""Words and looks of the page."""

TITLE = "Super tokens"
ABOUT = (
    "An SViT gathers the tokens of a picture in a few super tokens, which follow what is in it. Choose a picture, and "
    "click a point of any drawing to see where it looks. A cell is how many tokens, in each direction, share a super "
    "token at first. It is no weight: change it, and the answer and its time change with it."
)

# beside the colours of gradio, which follow the light or dark of the visitor
STYLE = """
.gradio-container, .gradio-container main { width: 100%; max-width: 1560px !important; margin: 0 auto !important; }
#about h1 { font-size: 1.75rem; font-weight: 650; letter-spacing: -.01em; margin: 0; color: var(--body-text-color); }
#about p { color: var(--body-text-color-subdued); max-width: 54rem; margin: .25rem 0 .25rem; line-height: 1.5; }
#preview { flex-shrink: 0; }
#preview .image-container, #preview .image-frame, #preview button { height: auto; width: 100%; }
#preview img { width: 100%; height: auto; max-height: 260px; object-fit: contain; }
#examples { flex-shrink: 0; height: auto !important; }
#examples .grid-wrap { min-height: 0 !important; height: auto !important; max-height: none !important;
  padding-top: 1.9rem; }
#examples .grid-container { grid-template-columns: repeat(auto-fill, minmax(60px, 1fr)) !important; gap: .4rem; }
.model h2 { font-size: 1.2rem; font-weight: 650; margin: 0; overflow-wrap: anywhere; color: var(--body-text-color); }
.answer { list-style: none; margin: 0; padding: 0; font-size: .95rem; }
.answer li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin: 0 0 .55rem; }
.answer .label { overflow-wrap: anywhere; }
.answer li:first-child .label { font-weight: 650; }
.answer .share { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.answer .bar { flex-basis: 100%; height: 7px; border-radius: 4px; background: var(--border-color-primary); }
.answer .bar span { display: block; height: 100%; border-radius: 4px; background: #c2571a; }
.cost, .hint, .layer-text { color: var(--body-text-color-subdued); font-size: .95rem; margin: .25rem 0; }
.cost b { color: var(--body-text-color); font-variant-numeric: tabular-nums; }
.drawings { display: grid !important; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .75rem; }
.drawing { min-width: 0 !important; display: flex; flex-direction: column-reverse; border: 0 !important; }
.drawing:first-child { grid-column: span 2; grid-row: span 2; }
.drawing img { cursor: crosshair; width: 100% !important; height: auto !important; max-height: none !important;
  object-fit: scale-down !important; border-radius: 6px; }
.drawing label[data-testid="block-label"] { position: static; border: 0; box-shadow: none; background: none;
  padding: .35rem .1rem 0; color: var(--body-text-color-subdued); font-size: .9rem; }
.drawing label[data-testid="block-label"] span { display: none; }
.drawing .image-container, .drawing .image-frame, .drawing .image-frame > *, .drawing button:has(img) {
  height: auto; width: 100%; }
.pair .drawings { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.pair .drawing:first-child { grid-row: auto; }
@media (max-width: 900px) {
  .drawings { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .drawing:first-child { grid-row: auto; }
}
.note, .error { font-size: .95rem; padding: .6rem .8rem; border-radius: 8px; margin: 0; }
.note { background: var(--background-fill-secondary); color: var(--body-text-color); }
.error { background: #fdecea; color: #8c1d12; border: 1px solid #f2b8b0; }
"""
