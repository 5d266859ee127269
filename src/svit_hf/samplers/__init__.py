# SPDX-License-Identifier: Apache-2.0
"""Comparison of super-token samplers without training: how well super tokens stand for what they were sampled from."""
