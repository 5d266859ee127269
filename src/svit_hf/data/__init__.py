# SPDX-License-Identifier: Apache-2.0
"""From files to batches: sources, the order of an epoch, decoding, augmentation, and shards to write.

What is trained on is a pure function of (seed, epoch, step): no state of an iterator, a buffer or a random generator
is ever saved. `sharding.py` says which sample is where; it is the place to start.
"""
