# SPDX-License-Identifier: Apache-2.0
"""Ablations: the same recipe with some fields changed, over several seeds, in one table."""
