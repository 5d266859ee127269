# SPDX-License-Identifier: Apache-2.0
"""Training: one loop for one CPU, eight GPUs or many nodes, which continues exactly where it was stopped.

`loop.py` is the place to start. What a run does is a `TrainingRecipe` (`options.py`).
"""
