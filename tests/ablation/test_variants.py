# SPDX-License-Identifier: Apache-2.0
"""Fields and values of an ablation, and the recipes that follow from them."""

from dataclasses import replace

import pytest

from svit_hf.ablation.table import Outcome, table_of
from svit_hf.ablation.variants import change_recipe, find_variants, folder_of, name_of
from svit_hf.data.options import DataOptions
from svit_hf.errors import SViTError
from svit_hf.recipes import RECIPES


class TestFinding:
    def test_every_combination_the_first_values_first(self):
        assert find_variants(["qkv-bias=true,false", "optimization.epochs=2,3"]) == [
            {"model.config.qkv_bias": has_bias, "optimization.epochs": epochs}
            for has_bias in (True, False)
            for epochs in (2, 3)
        ]

    def test_samplers_and_mixers_have_their_controls(self):
        sampler, mixer = "model.config.super_token_sampler", "model.config.super_token_mixer"
        assert find_variants(["super_token_sampler=soft,grid"]) == [
            {sampler: "soft"},
            {sampler: "grid"},
            {sampler: "random"},
            {sampler: "soft", mixer: "none"},
        ]
        assert find_variants(["super_token_mixer=attention,none"])[2:] == [{mixer: "attention", sampler: "random"}]

    @pytest.mark.parametrize(
        ("over", "first"),
        [
            ("super_token_sizes=[2,2,1,1],[4,2,1,1]", [2, 2, 1, 1]),
            ("num_sampling_iterations=[1,1,1,1],[2,2,1,1]", [1, 1, 1, 1]),
            ("attention_kinds=super_tokens,window", "super_tokens"),
            # what has no super tokens has no control of them
            (
                'attention_kinds=none,["window","super_tokens","global","global"]',
                ["window", "super_tokens", "global", "global"],
            ),
        ],
    )
    def test_so_has_what_else_is_compared_of_super_tokens(self, over, first):
        field = f"model.config.{over.partition('=')[0]}"
        assert find_variants([over])[2:] == [
            {field: first, "model.config.super_token_sampler": "random"},
            {field: first, "model.config.super_token_mixer": "none"},
        ]

    @pytest.mark.parametrize(
        "over", ["attention_kinds=global,window", "optimization.epochs=1,2", "qkv_bias=true,false"]
    )
    def test_nothing_else_has(self, over):
        assert len(find_variants([over])) == 2

    def test_values_are_json_or_text(self):
        variants = find_variants(["super_token_sizes=[2,2,1,1],[[4,2],1,1,1]", "qkv_bias=true,false"])[:4]
        assert [variant["model.config.super_token_sizes"] for variant in variants[::2]] == [
            [2, 2, 1, 1],
            [[4, 2], 1, 1, 1],
        ]
        assert [variant["model.config.qkv_bias"] for variant in variants[:2]] == [True, False]
        assert find_variants(["qkv_bias=True,False"]) == find_variants(["qkv_bias=true,false"])

    def test_one_by_one_each_value_is_alone_beside_what_is_there(self):
        mixer = "model.config.super_token_mixer"
        assert find_variants(["qkv_bias=false", "super_token_mixer=convolution,none"], one_by_one=True) == [
            {},
            {"model.config.qkv_bias": False},
            {mixer: "convolution"},
            {mixer: "none"},
            {"model.config.super_token_sampler": "random"},
        ]
        assert find_variants([], one_by_one=True) == [{}]

    def test_nothing_is_one_variant(self):
        assert find_variants([]) == [{}]
        assert folder_of({}) == "as_it_is"

    @pytest.mark.parametrize("over", [["super_token_sampler"], ["qkv_bias="], ["qkv_bias=1", "qkv-bias=2"]])
    def test_neither_without_values_nor_twice(self, over):
        with pytest.raises(SViTError, match="`over` has"):
            find_variants(over)

    def test_seeds_are_no_values(self):
        with pytest.raises(SViTError, match="say how many with `seeds`"):
            find_variants(["run.seed=0,1"])

    def test_unknown_config_fields_are_refused(self):
        with pytest.raises(SViTError, match=r"Did you mean `model.config.super_token_sampler`"):
            find_variants(["super_token_samplers=soft"])


class TestNames:
    def test_are_short_and_fit_for_folders(self):
        variant = {"model.config.super_token_sizes": [2, [4, 2]], "data.path": "a/b c"}
        assert name_of(variant) == "super_token_sizes=[2,[4,2]],path=a/b c"
        assert folder_of(variant) == "super_token_sizes=2,4,2,path=a_b_c"


class TestRecipes:
    def test_fields_and_seed_change_and_nothing_else(self):
        recipe = RECIPES["smoke"]()
        changed = change_recipe(recipe, {"model.config.qkv_bias": False, "optimization.epochs": 7}, seed=5)
        expected = replace(
            recipe,
            model=replace(recipe.model, config={**recipe.model.config, "qkv_bias": False}),
            optimization=replace(recipe.optimization, epochs=7),
            run=replace(recipe.run, seed=5),
        )
        assert changed == expected

    def test_passwords_stay_where_they_are(self):
        recipe = replace(RECIPES["smoke"](), data=DataOptions(path="s3://key:secret@bucket/cats.parquet"))
        assert change_recipe(recipe, {"optimization.epochs": 7}, 0).data == recipe.data

    @pytest.mark.parametrize("field", ["optimization.epoch", "optimizer.epochs", "name.length"])
    def test_unknown_fields_are_refused(self, field):
        with pytest.raises(SViTError, match=field):
            change_recipe(RECIPES["smoke"](), {field: 1}, 0)

    def test_impossible_values_are_refused(self):
        with pytest.raises(SViTError, match=r"optimization\.epochs"):
            change_recipe(RECIPES["smoke"](), {"optimization.epochs": "many"}, 0)


class TestTable:
    def test_differences_are_paired(self):
        first = Outcome("a", [0.5, 0.7, 0.6], 1000, 2_000_000, [10.0, 20.0, 30.0])
        other = Outcome("b", [0.6, 0.8, 0.5], 1234, 2_500_000, [1.0, 1.0, 4.0])
        _, a, b = table_of([first, other], "accuracy")
        assert a == ("a", "0.6000", "0.1000", "", "", "1,000", "2 M", "20")
        # +0.1, +0.1, -0.1: their standard deviation is 0.1155
        assert b == ("b", "0.6333", "0.1528", "+0.0333 ± 0.0667", "2 of 3", "1,234", "2.5 M", "2")

    def test_one_seed_has_no_spread(self):
        rows = table_of([Outcome(name, [0.5], 1, 1, [1.0]) for name in "ab"], "accuracy")
        assert [row[2] for row in rows[1:]] == ["?", "?"]
        assert rows[2][3] == "+0.0000 ± ?"
