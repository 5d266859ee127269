# SPDX-License-Identifier: Apache-2.0
"""SViTConfig: published layouts, round trips, and the refusal of everything that does not fit."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from tiny import tiny_config

from svit_hf import SViTConfig, SViTModel


class TestLayouts:
    def test_default_is_small(self):
        assert SViTConfig().to_dict() == SViTConfig.small().to_dict()

    @pytest.mark.parametrize(
        ("name", "hidden_sizes", "depths"),
        [
            ("small", [64, 128, 320, 512], [3, 5, 9, 3]),
            ("base", [96, 192, 384, 512], [4, 6, 14, 6]),
            ("large", [96, 192, 448, 640], [4, 7, 19, 8]),
        ],
    )
    def test_published_layouts(self, name, hidden_sizes, depths):
        config = getattr(SViTConfig, name)()
        assert (config.hidden_sizes, config.depths) == (hidden_sizes, depths)
        assert config.super_token_sizes == [8, 4, 1, 1]
        # the published heads are never wider than 64 channels
        assert max(width // heads for width, heads in zip(hidden_sizes, config.num_attention_heads, strict=True)) <= 64

    def test_keyword_wins_over_layout(self):
        config = SViTConfig.large(depths=[1, 1, 1, 1], num_labels=7)
        assert (config.depths, config.num_labels) == ([1, 1, 1, 1], 7)

    @pytest.mark.parametrize("num_stages", [1, 2, 5])
    def test_any_number_of_stages(self, num_stages):
        config = SViTConfig(
            hidden_sizes=[8] * num_stages,
            depths=[1] * num_stages,
            num_attention_heads=[2] * num_stages,
            super_token_sizes=[2] * num_stages,
            num_sampling_iterations=[1] * num_stages,
            use_layer_scale=[False] * num_stages,
        )
        assert config.stage_names == ["stem", *(f"stage{stage + 1}" for stage in range(num_stages))]
        assert config.num_hidden_layers == num_stages


class TestRoundTrip:
    def test_json(self, tmp_path):
        config = tiny_config(
            super_token_sizes=[(4, 2), 2, 1, 1],
            image_size=(64, 96),
            out_features=["stage2", "stage4"],
            id2label={0: "cat", 1: "dog"},
            label2id={"cat": 0, "dog": 1},
        )
        config.save_pretrained(tmp_path)
        loaded = SViTConfig.from_pretrained(tmp_path)
        assert loaded.to_dict() == config.to_dict()
        assert loaded.cell_sizes == [(4, 2), (2, 2), (1, 1), (1, 1)]
        assert loaded.out_indices == [2, 4]
        assert json.loads((tmp_path / "config.json").read_text())["super_token_sizes"] == [[4, 2], 2, 1, 1]

    def test_configs_share_no_list(self):
        first, second = SViTConfig(), SViTConfig()
        first.depths[0] = 99
        assert second.depths == SViTConfig().depths == [3, 5, 9, 3]

    def test_foreign_keys_of_a_config_file_are_kept(self):
        assert SViTConfig(finetuned_by="somebody").finetuned_by == "somebody"


class TestUnknownFields:
    @pytest.fixture
    def warnings(self, monkeypatch):
        messages = []
        monkeypatch.setattr("svit_hf.model.configuration_svit.logger.warning_once", messages.append)
        return messages

    @pytest.mark.parametrize(
        ("typo", "field"),
        [
            ("super_token_size", "super_token_sizes"),
            ("drop_path_rat", "drop_path_rate"),
            ("use_layerscale", "use_layer_scale"),
            # how other models call theirs
            ("layer_norm_epsilon", "layer_norm_eps"),
        ],
    )
    def test_a_near_miss_in_a_config_file_is_loaded_with_a_warning(self, warnings, typo, field, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "svit", typo: 1}))
        assert getattr(SViTConfig.from_pretrained(tmp_path), typo) == 1
        assert warnings == [f"`{typo}`=1 is no field of SViTConfig; did you mean `{field}`?"]

    def test_others_are_kept_without_a_word(self, warnings):
        assert SViTConfig(num_heads_attention=1).num_heads_attention == 1
        assert warnings == []


REFUSED = {
    "lengths": ({"depths": [1, 1, 1]}, r"`depths` has 3 entries, \[1, 1, 1\]; it needs 4"),
    "lengths-of-layer-scale": ({"use_layer_scale": [True]}, r"`use_layer_scale` has 1 entries"),
    "no-stage": ({"hidden_sizes": []}, r"`hidden_sizes` is empty"),
    "heads": (
        {"num_attention_heads": [1, 2, 3, 8]},
        r"`num_attention_heads` has 3 for stage 3, which does not divide",
    ),
    "no-heads": ({"num_attention_heads": [0, 2, 5, 8]}, r"`num_attention_heads` is \[0, 2, 5, 8\]"),
    "depth": ({"depths": [0, 1, 1, 1]}, r"`depths` is \[0, 1, 1, 1\]; every entry has to be at least 1"),
    "width": ({"hidden_sizes": [64, 128, 320, -512]}, r"`hidden_sizes` is"),
    "odd-stem": (
        {"hidden_sizes": [63, 128, 320, 512]},
        r"`hidden_sizes` starts with 63; the first entry has to be even",
    ),
    "cell": ({"super_token_sizes": [8, 0, 1, 1]}, r"`super_token_sizes` has 0 for stage 2"),
    "cell-triple": ({"super_token_sizes": [[8, 8, 8], 4, 1, 1]}, r"`super_token_sizes` has \[8, 8, 8\] for stage 1"),
    "cell-pair": ({"super_token_sizes": [(8, -1), 4, 1, 1]}, r"`super_token_sizes` has \[8, -1\] for stage 1"),
    "iterations": ({"num_sampling_iterations": [1, 0, 1, 1]}, r"`num_sampling_iterations` has 0 for stage 2"),
    "sampler": ({"super_token_sampler": "harder"}, r"`super_token_sampler` is 'harder'; allowed are \['cosine',"),
    "activation": ({"hidden_act": "gelo"}, r"`hidden_act` is 'gelo'; allowed are"),
    "channels": ({"num_channels": 0}, r"`num_channels` is 0"),
    "image-size": ({"image_size": [224, 224, 3]}, r"`image_size` is \[224, 224, 3\]"),
    "projection": ({"projection_dim": 0}, r"`projection_dim` is 0"),
    "mlp-ratio": ({"mlp_ratio": 0}, r"`mlp_ratio` is 0"),
    "mlp-ratio-too-small": ({"mlp_ratio": 0.01}, r"`mlp_ratio` is 0.01; it leaves no hidden channel"),
    "drop-path": ({"drop_path_rate": 1.0}, r"`drop_path_rate` is 1.0; it has to be at least 0 and below 1"),
    "dropout": ({"hidden_dropout_prob": -0.1}, r"`hidden_dropout_prob` is -0.1"),
    "epsilon": ({"layer_norm_eps": 0.0}, r"`layer_norm_eps` is 0.0"),
    "initializer": ({"initializer_range": -1.0}, r"`initializer_range` is -1.0; it has to be above 0"),
    "initializer-zero": ({"initializer_range": 0}, r"`initializer_range` is 0; it has to be above 0 and at most 100"),
    "layer-scale-nan": ({"layer_scale_init_value": float("nan")}, r"`layer_scale_init_value` is nan"),
    "layer-scale-infinite": ({"layer_scale_init_value": float("inf")}, r"`layer_scale_init_value` is inf"),
    "mlp-ratio-huge": ({"mlp_ratio": 1e308}, r"`mlp_ratio` is 1e\+308; it has to be above 0 and at most 1000"),
    "epsilon-nan": ({"batch_norm_eps": float("nan")}, r"`batch_norm_eps` is nan"),
    "epsilon-infinite": ({"layer_norm_eps": float("inf")}, r"`layer_norm_eps` is inf; it has to be above 0 and"),
}


class TestRefusal:
    @pytest.mark.parametrize(("kwargs", "message"), REFUSED.values(), ids=REFUSED)
    def test_impossible_values(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            SViTConfig(**kwargs)

    @pytest.mark.parametrize(
        "kwargs",
        [{"depths": "3 5 9 3"}, {"depths": [1, 2, "3", 4]}, {"qkv_bias": 1}, {"use_layer_scale": [0, 0, 1, 1]}],
        ids=["string", "string-in-list", "int-for-bool", "ints-for-bools"],
    )
    def test_wrong_types(self, kwargs):
        with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(kwargs))):
            SViTConfig(**kwargs)

    def test_wrong_type_on_assignment(self):
        with pytest.raises(StrictDataclassFieldValidationError, match="drop_path_rate"):
            SViTConfig().drop_path_rate = "0.1"

    def test_unknown_stage_in_out_features(self):
        with pytest.raises(ValueError, match=r"stage_names.*stage9"):
            SViTConfig(out_features=["stage9"])

    def test_change_after_creation_is_checked_when_a_model_is_built(self):
        config = tiny_config()
        config.depths = [1, 1]
        with pytest.raises(ValueError, match=r"`depths` has 2 entries"):
            SViTModel(config)
