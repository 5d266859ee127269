# SPDX-License-Identifier: Apache-2.0
"""What shows SViT at work on data that comes along: a training run from nothing to a classified picture."""
