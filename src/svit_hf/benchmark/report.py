# SPDX-License-Identifier: Apache-2.0
"""A comparison as text: tables, and what to take."""

from collections.abc import Sequence

from svit_hf.benchmark.comparison import Comparison, Measurement
from svit_hf.benchmark.forms import EAGER, FORMS


HEADINGS = ("form", "dtype", "images/s", "times eager", "quartiles", "difference", "memory MB", "")


def tables_of(result: Comparison) -> list[str]:
    """Return a table for each batch size, and what was left out."""
    tables = []
    for batch_size in dict.fromkeys(row.batch_size for row in result.measurements):
        rows = [row for row in result.measurements if row.batch_size == batch_size]
        title = f"batch {batch_size}, {rows[0].image_size} pixels"
        tables.append(f"{title}\n{align([HEADINGS, *map(_cells, rows)])}")
    if result.left_out:
        tables.append("\n".join(f"left out: {reason}" for reason in result.left_out))
    return tables


def recommendation_of(result: Comparison) -> str:
    """Return which form to take for each batch size, and the code that gets it."""
    lines: dict[str, list[str]] = {}
    for batch_size in dict.fromkeys(row.batch_size for row in result.measurements):
        same, any_dtype = result.best(batch_size, ("fp32",)), result.best(batch_size)
        for row in dict.fromkeys(map(_key, (same, any_dtype))):
            best = same if _key(same) == row else any_dtype
            gain = f"{best.speedup.median:.2f} times as fast as the model as it is"
            if best.form == EAGER.name and best.dtype == "fp32":
                gain = "no other form was faster beyond noise"
            elif best.dtype != "fp32":
                gain += f", logits differ by {best.difference:.0e}"
            code = FORMS[best.form].code
            if best.dtype in ("bf16", "fp16"):
                code += f"\nmodel.to(torch.{'bfloat16' if best.dtype == 'bf16' else 'float16'})"
            lines.setdefault(code, []).append(f"batch {batch_size}: {best.form}, {best.dtype}; {gain}")
    parts = []
    for code, reasons in lines.items():
        parts += [*reasons, "", *(f"    {line}".rstrip() for line in code.splitlines()), ""]
    return "\n".join(["Recommended on this machine:", "", *parts]).rstrip()


def align(rows: Sequence[tuple[str, ...]]) -> str:
    """Return cells as lines of text: the first column to the left, the others to the right, notes at the end."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _key(row: Measurement) -> tuple[str, str]:
    return row.form, row.dtype


def _cells(row: Measurement) -> tuple[str, ...]:
    return (
        row.form,
        row.dtype,
        f"{row.images_per_second:.3g}" if row.images_per_second < 100 else f"{row.images_per_second:.0f}",
        f"{row.speedup.median:.2f}",
        f"{row.speedup.lower_quartile:.2f} - {row.speedup.upper_quartile:.2f}",
        f"{row.difference:.0e}",
        "" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:,.0f}",
        "" if row.is_right else "WRONG: not recommended",
    )
