# SPDX-License-Identifier: Apache-2.0
"""What a model needs on the Hugging Face Hub: code beside the weights, and a card."""
