# SPDX-License-Identifier: Apache-2.0
"""LoRA by PEFT on the 1x1 convolutions of the model, as docs/guides/finetune.md says."""

import pytest
import torch
from tiny import tiny_config
from torch import nn

from svit_hf import SViTForImageClassification, save_with_code


peft = pytest.importorskip("peft", reason="peft is not installed")
pytestmark = [
    pytest.mark.newest,
    # PEFT's own code, which asks transformers 5.23 by an earlier name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

# those of the guide
TARGETS = ["qkv", "projection", "fc1", "fc2"]
# of logits up to 3: float32 in another order; 6e-8 was the worst seen
TOLERANCE = 1e-6


def make_model():
    torch.manual_seed(0)
    model = SViTForImageClassification(tiny_config())
    model.freeze_batch_norm()
    return model


@pytest.fixture
def batch():
    torch.manual_seed(0)
    labels = torch.arange(10) % 5
    # the lighter, the higher the class
    return {"pixel_values": torch.randn(10, 3, 64, 64) + labels.view(-1, 1, 1, 1), "labels": labels}


def test_targets_are_all_projections_and_nothing_else():
    adapted = peft.get_peft_model(make_model(), peft.LoraConfig(target_modules=TARGETS))
    pointwise = {
        name
        for name, module in make_model().named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    }
    assert set(adapted.targeted_module_names) == pointwise


def test_all_linear_reaches_the_classifier_alone():
    adapted = peft.get_peft_model(make_model(), peft.LoraConfig(target_modules="all-linear"))
    assert adapted.targeted_module_names == ["classifier"]


def test_adapters_train_and_are_saved_loaded_and_merged(batch, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["classifier"])
    adapted = peft.get_peft_model(make_model(), config)
    frozen = {name: value.clone() for name, value in adapted.state_dict().items() if "base_layer" in name}
    optimizer = torch.optim.AdamW([value for value in adapted.parameters() if value.requires_grad], 3e-2)
    losses = []
    for _ in range(20):
        loss = adapted(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(adapted.state_dict()[name], value) for name, value in frozen.items())

    with torch.no_grad():
        expected = adapted.eval()(**batch).logits
        adapted.save_pretrained(tmp_path / "adapter")
        loaded = peft.PeftModel.from_pretrained(make_model(), tmp_path / "adapter").eval()
        assert torch.equal(loaded(**batch).logits, expected)
        assert not torch.allclose(make_model().eval()(**batch).logits, expected, atol=1e-2)

        merged = loaded.merge_and_unload()
        assert merged.state_dict().keys() == make_model().state_dict().keys()
        save_with_code(merged, tmp_path / "merged")
        saved = SViTForImageClassification.from_pretrained(tmp_path / "merged").eval()
        assert torch.allclose(saved(**batch).logits, expected, atol=TOLERANCE, rtol=0)
