# SPDX-License-Identifier: Apache-2.0
"""The model as it ships to the Hub: configuration, algorithm, network, image processors. Flat, self-contained."""
