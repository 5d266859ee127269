# SPDX-License-Identifier: Apache-2.0
"""The demo in the browser: what a model answers about a picture, its super tokens, and where a point looks."""
