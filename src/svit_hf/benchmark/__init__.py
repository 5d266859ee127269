# SPDX-License-Identifier: Apache-2.0
"""Time and memory of SViT beside the official operators and its peers, in one run on one machine."""
