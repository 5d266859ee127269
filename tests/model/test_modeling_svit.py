# SPDX-License-Identifier: Apache-2.0
"""SViTModel, SViTForImageClassification and SViTBackbone: inputs, outputs, training, saving, compiling."""

import copy
import warnings

import pytest
import torch
from tiny import one_stage_config, tiny_config, two_stage_config
from torch import nn
from torch.profiler import ProfilerActivity, profile

from svit_hf import SViTBackbone, SViTConfig, SViTForImageClassification, SViTModel


SIZES = [(32, 32), (33, 47), (64, 100), (75, 41)]


def images(batch_size=2, num_channels=3, height=64, width=64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randn(batch_size, num_channels, height, width, generator=generator).to(dtype)


def names_up_to_the_root(event):
    return [event.name, *(names_up_to_the_root(event.cpu_parent) if event.cpu_parent else [])]


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return SViTForImageClassification(tiny_config()).eval()


class TestInputs:
    @pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
    def test_any_size(self, height, width):
        model = SViTModel(tiny_config()).eval()
        outputs = model(images(height=height, width=width))
        # each of the five strided convolutions rounds up
        expected = [-(-height // 32), -(-width // 32)]
        assert list(outputs.last_hidden_state.shape) == [2, 24, *expected]
        assert outputs.pooler_output.shape == (2, 32)
        assert outputs.pooler_output.isfinite().all()

    @pytest.mark.parametrize("num_channels", [1, 2, 4, 13])
    def test_any_number_of_channels(self, num_channels):
        model = SViTModel(tiny_config(num_channels=num_channels)).eval()
        with torch.no_grad():
            outputs = model(images(num_channels=num_channels), output_hidden_states=True)
        assert outputs.last_hidden_state.isfinite().all()
        for hidden_state in outputs.hidden_states:
            assert hidden_state.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("shape", [(2, 1, 64, 64), (3, 64, 64), (2, 4, 64, 64)], ids=str)
    def test_wrong_shape_is_refused(self, shape):
        with pytest.raises(ValueError, match=r"`pixel_values` has shape .*`config.num_channels`=3 channels"):
            SViTModel(tiny_config())(torch.zeros(shape))

    @pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
    def test_no_image_gives_no_logits(self, attn_implementation):
        model = SViTForImageClassification(tiny_config()).eval()
        model.set_attn_implementation(attn_implementation)
        assert model(images(batch_size=0)).logits.shape == (0, 5)

    def test_both_memory_layouts_give_the_same(self, classifier):
        pixels = images(height=75, width=41)
        channels_last = classifier(pixels.contiguous(memory_format=torch.channels_last)).logits
        torch.testing.assert_close(classifier(pixels).logits, channels_last, rtol=0, atol=0)

    def test_one_image_gives_what_it_gives_in_a_batch(self, classifier):
        pixels = images(batch_size=3)
        torch.testing.assert_close(classifier(pixels[1:2]).logits, classifier(pixels).logits[1:2])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
    @pytest.mark.parametrize("cell", [4, 16], ids=["cell4", "cell16"])
    def test_half_precision_is_finite_and_near_float32(self, dtype, cell):
        torch.manual_seed(0)
        model = SViTForImageClassification(tiny_config(super_token_sizes=[cell, cell, 1, 1])).eval()
        pixels = images(height=96, width=160)
        with torch.no_grad():
            expected = model(pixels).logits
            # float32 pixels are cast to the dtype of the weights
            logits = model.to(dtype)(pixels).logits
        assert logits.dtype == dtype
        assert ((logits - expected).norm() / expected.norm()).item() < 16 * torch.finfo(dtype).eps

    def test_float16_training_step_is_finite(self):
        model = SViTForImageClassification(tiny_config(super_token_sizes=[16, 8, 1, 1])).half().train()
        loss = model(images(dtype=torch.float16), labels=torch.tensor([0, 1])).loss
        loss.backward()
        assert loss.isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


class TestOutputs:
    def test_everything_on_request(self):
        model = SViTModel(tiny_config(), add_pooling_layer=True).eval()
        model.set_attn_implementation("eager")
        outputs = model(
            images(height=64, width=96),
            output_hidden_states=True,
            output_attentions=True,
            output_super_tokens=True,
            output_associations=True,
        )
        assert [tuple(state.shape[1:]) for state in outputs.hidden_states] == [
            (8, 16, 24),
            (8, 16, 24),
            (12, 8, 12),
            (16, 4, 6),
            (24, 2, 3),
        ]
        assert outputs.last_hidden_state is outputs.hidden_states[-1]
        # one per layer: stage 1 has one, stage 2 two, and there a grid of 4x6 super tokens
        assert [tuple(state.shape[1:]) for state in outputs.super_tokens] == [(8, 4, 6), (12, 4, 6), (12, 4, 6)]
        assert [tuple(state.shape[1:]) for state in outputs.associations] == [(24, 16, 9), (24, 4, 9), (24, 4, 9)]
        heads_and_tokens = [(1, 24), (2, 24), (2, 24), (2, 24), (4, 6)]
        assert [tuple(state.shape[1:]) for state in outputs.attentions] == [(a, g, g) for a, g in heads_and_tokens]
        for attention in outputs.attentions:
            torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))

    @pytest.mark.parametrize("model_class", [SViTModel, SViTForImageClassification, SViTBackbone])
    def test_nothing_without_request(self, model_class):
        outputs = model_class(tiny_config()).eval()(images())
        for name in ("hidden_states", "attentions", "super_tokens", "associations"):
            assert outputs[name] is None if name in outputs else getattr(outputs, name) is None

    @pytest.mark.parametrize("model_class", [SViTForImageClassification, SViTBackbone])
    def test_heads_pass_requests_on(self, model_class):
        outputs = model_class(tiny_config()).eval()(images(), output_super_tokens=True, output_associations=True)
        assert len(outputs.super_tokens) == len(outputs.associations) == 3

    def test_request_in_the_config(self, classifier):
        classifier.config.output_super_tokens = True
        assert len(classifier(images()).super_tokens) == 3

    def test_attention_implementations_agree(self, classifier):
        pixels = images()
        expected = classifier(pixels).logits
        classifier.set_attn_implementation("eager")
        torch.testing.assert_close(classifier(pixels).logits, expected)

    @pytest.mark.campaign
    def test_flex_attention_agrees(self):
        # it is compiled for every layer
        model, pixels = SViTForImageClassification(one_stage_config()).eval(), images()
        with torch.no_grad():
            expected = model(pixels).logits
            model.set_attn_implementation("flex_attention")
            torch.testing.assert_close(model(pixels).logits, expected)


class TestClassifier:
    def test_without_labels_the_logits_are_the_descriptor(self):
        model = SViTForImageClassification(tiny_config(num_labels=0)).eval()
        pixels = images()
        torch.testing.assert_close(model(pixels).logits, model.svit(pixels).pooler_output)

    @pytest.mark.parametrize(
        ("num_labels", "labels", "expected"),
        [
            (1, torch.tensor([0.5, -1.0]), "regression"),
            (5, torch.tensor([0, 3]), "single_label_classification"),
            (5, torch.zeros(2, 5).index_fill_(1, torch.tensor([1, 2]), 1.0), "multi_label_classification"),
        ],
        ids=["regression", "single", "multi"],
    )
    def test_loss_follows_the_labels(self, num_labels, labels, expected):
        model = SViTForImageClassification(tiny_config(num_labels=num_labels)).eval()
        outputs = model(images(), labels=labels)
        losses = {
            "regression": lambda: nn.functional.mse_loss(outputs.logits.squeeze(), labels),
            "single_label_classification": lambda: nn.functional.cross_entropy(outputs.logits, labels),
            "multi_label_classification": lambda: nn.functional.binary_cross_entropy_with_logits(
                outputs.logits, labels
            ),
        }
        torch.testing.assert_close(outputs.loss, losses[expected]())
        assert model.config.problem_type == expected

    def test_same_labels_in_another_order_keep_their_weights(self, classifier):
        classifier.set_labels(["a", "b", "c", "d", "e"])
        before = classifier(images()).logits
        classifier.set_labels(["c", "a", "e", "b", "d"])
        torch.testing.assert_close(classifier(images()).logits, before[:, [2, 0, 4, 1, 3]])
        assert classifier.config.id2label[0] == "c"
        assert classifier.config.label2id["d"] == 4

    def test_new_labels_replace_the_classifier_and_say_so(self, classifier, monkeypatch):
        classifier.config.id2label = dict(enumerate("abcde"))
        backbone = copy.deepcopy(classifier.svit.state_dict())
        warnings = []
        monkeypatch.setattr("svit_hf.model.modeling_svit.logger.warning", warnings.append)
        classifier.set_labels(["cat", "dog"])
        assert "for 2 labels replaces the one for 5" in warnings[0]
        assert classifier(images(), labels=torch.tensor([0, 1])).logits.shape == (2, 2)
        assert classifier.config.num_labels == classifier.num_labels == 2
        assert classifier.classifier.bias.abs().sum() == 0
        torch.testing.assert_close(classifier.svit.state_dict(), backbone)

    @pytest.mark.parametrize("labels", [[], ["a", "a"]], ids=["none", "twice"])
    def test_impossible_labels_are_refused(self, classifier, labels):
        with pytest.raises(ValueError, match="it has to name at least one class, and every class once"):
            classifier.set_labels(labels)


class TestReturnedTuples:
    @pytest.mark.parametrize("model_class", [SViTModel, SViTForImageClassification, SViTBackbone])
    def test_config_and_call_can_ask_for_them(self, model_class):
        model = model_class(tiny_config()).eval()
        expected = model(images())
        asked_in_call = model(images(), return_dict=False)
        model.config.return_dict = False
        for outputs in (asked_in_call, model(images())):
            assert type(outputs) is tuple
            torch.testing.assert_close(outputs, expected.to_tuple(), rtol=0, atol=0)
        assert type(model(images(), return_dict=True)) is type(expected)


class TestTools:
    def test_nesting_of_calls_is_nesting_of_modules(self):
        # what counts parameters, flops or memory by hooks takes a call inside another module's for one of its children
        model = SViTForImageClassification(SViTConfig.small(num_labels=1000)).eval()
        names = {module: name for name, module in model.named_modules()}
        open_calls, counted = [], {}

        def enter(module, inputs):
            assert not open_calls or f"{names[module]}.".startswith(f"{names[open_calls[-1]]}.".lstrip("."))
            open_calls.append(module)

        def leave(module, inputs, outputs):
            open_calls.pop()
            counted[module] = sum(parameter.numel() for parameter in module.parameters(recurse=False))

        for module in model.modules():
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
        with torch.no_grad():
            model(images(1, 3, 32, 32))
        assert round(sum(counted.values()) / 1e6, 2) == 25.50

    def test_trace_has_operators_that_older_converters_know(self):
        model = SViTForImageClassification(two_stage_config()).eval().requires_grad_(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            traced = torch.jit.trace(lambda pixels: model(pixels).logits, images(1), check_trace=False)
        operators = {node.kind() for node in traced.inlined_graph.nodes()}
        assert "aten::softmax" in operators
        assert not operators & {"aten::mT", "aten::mH", "aten::adjoint"}


# no batching rule for fused attention, which then runs image by image
@pytest.mark.filterwarnings("ignore:There is a performance drop")
class TestFunctionTransforms:
    def test_gradients_per_image(self, classifier):
        parameters = {name: parameter.detach() for name, parameter in classifier.named_parameters()}
        buffers, labels = dict(classifier.named_buffers()), torch.tensor([0, 3])

        def loss(parameters, pixels, label):
            logits = torch.func.functional_call(classifier, (parameters, buffers), (pixels[None],)).logits
            return nn.functional.cross_entropy(logits, label[None])

        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, images(), labels)
        classifier(images()[1:], labels=labels[1:]).loss.backward()
        for name, parameter in classifier.named_parameters():
            torch.testing.assert_close(gradients[name][1], parameter.grad, rtol=1e-4, atol=1e-5)

    def test_ensemble(self, classifier):
        models = [classifier, SViTForImageClassification(tiny_config()).eval()]
        parameters, buffers = torch.func.stack_module_state(models)
        skeleton, pixels = copy.deepcopy(classifier).to("meta"), images()

        def logits(parameters, buffers):
            return torch.func.functional_call(skeleton, (parameters, buffers), (pixels,)).logits

        together = torch.func.vmap(logits)(parameters, buffers)
        torch.testing.assert_close(together, torch.stack([model(pixels).logits for model in models]))

    def test_forward_does_not_ask_for_all_parameters(self, classifier, monkeypatch):
        # what holds weights in another way, as quantisers and sharding do, has none, or others, to show
        expected = classifier(images()).logits
        for name in ("parameters", "named_parameters", "dtype", "device"):
            monkeypatch.setattr(SViTForImageClassification, name, property(lambda self: pytest.fail("asked")))
            monkeypatch.setattr(SViTModel, name, property(lambda self: pytest.fail("asked")))
        monkeypatch.setattr(nn.Module, "parameters", lambda *arguments: pytest.fail("asked"))
        torch.testing.assert_close(classifier(images()).logits, expected, rtol=0, atol=0)


class TestBackbone:
    def test_feature_maps_are_those_of_the_named_stages(self):
        model = SViTBackbone(tiny_config(out_features=["stem", "stage2", "stage4"])).eval()
        outputs = model(images(height=64, width=96), output_hidden_states=True)
        assert model.channels == [8, 12, 24]
        for feature_map, index in zip(outputs.feature_maps, (0, 2, 4), strict=True):
            assert feature_map is outputs.hidden_states[index]
        assert [feature_map.shape[1] for feature_map in outputs.feature_maps] == model.channels

    def test_loads_a_classifier(self, classifier, tmp_path):
        classifier.save_pretrained(tmp_path)
        backbone, info = SViTBackbone.from_pretrained(tmp_path, out_features=["stage4"], output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        pixels = images()
        expected = classifier.svit(pixels).last_hidden_state
        torch.testing.assert_close(backbone.eval()(pixels).feature_maps[0], expected)

    def test_cells_may_change_at_load_time(self, classifier, tmp_path):
        classifier.save_pretrained(tmp_path)
        model = SViTForImageClassification.from_pretrained(tmp_path, super_token_sizes=[8, 4, 2, 1]).eval()
        torch.testing.assert_close(model.state_dict(), classifier.state_dict())
        assert not torch.equal(model(images()).logits, classifier(images()).logits)


class TestInitialisation:
    def test_follows_the_official_code(self):
        torch.manual_seed(0)
        config = tiny_config(num_labels=4000, projection_dim=64, initializer_range=0.02)
        model = SViTForImageClassification(config)
        linear = model.classifier
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert linear.bias.abs().sum() == 0
        convolution = model.svit.stages[3].layers[0].mlp.fc2
        bound = convolution.in_channels**-0.5
        assert convolution.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
        assert convolution.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert 0 < convolution.bias.abs().max().item() <= bound
        layer = model.svit.stages[3].layers[0]
        assert (layer.layer_scale1.scale == 0.5).all()
        assert (layer.attention.norm.weight == 1).all()
        assert (layer.mlp_norm.running_var == 1).all()

    def test_drop_path_grows_linearly_over_all_layers(self):
        model = SViTModel(tiny_config(drop_path_rate=0.4))
        rates = [layer.drop_path.rate for stage in model.stages for layer in stage.layers]
        assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])

    def test_missing_weights_are_initialised_when_loading(self, tmp_path):
        SViTModel(tiny_config()).save_pretrained(tmp_path)
        model, info = SViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
        assert model.classifier.weight.std() > 0
        assert model.classifier.bias.abs().sum() == 0


class TestBatchNorm:
    def test_frozen_statistics_survive_train(self, classifier):
        before = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
        classifier.freeze_batch_norm()
        # a network around the model switches its children one by one
        nn.ModuleList([classifier]).train()
        classifier(images(), labels=torch.tensor([0, 1])).loss.backward()
        assert classifier.training
        torch.testing.assert_close(dict(classifier.named_buffers()), before, rtol=0, atol=0)
        assert all(parameter.requires_grad for parameter in classifier.parameters())

    def test_affine_can_be_frozen_too(self, classifier):
        classifier.freeze_batch_norm(freeze_affine=True)
        frozen = {name for name, parameter in classifier.named_parameters() if not parameter.requires_grad}
        norms = {name for name, module in classifier.named_modules() if isinstance(module, nn.BatchNorm2d)}
        assert frozen == {f"{name}.{part}" for name in norms for part in ("weight", "bias")}

    def test_release(self, classifier):
        classifier.freeze_batch_norm(freeze_affine=True)
        classifier.freeze_batch_norm(False)
        classifier.train()
        classifier(images())
        norm = classifier.svit.embeddings.layers[0].batch_norm
        assert norm.training
        assert norm.num_batches_tracked == 1
        assert all(parameter.requires_grad for parameter in classifier.parameters())

    @pytest.mark.parametrize("is_synchronized", [False, True], ids=["batch-norm", "sync-batch-norm"])
    @pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
    def test_gradient_checkpointing_changes_nothing(self, use_reentrant, is_synchronized):
        torch.manual_seed(0)
        plain = SViTForImageClassification(tiny_config(drop_path_rate=0.3)).train()
        if is_synchronized:
            plain = nn.SyncBatchNorm.convert_sync_batchnorm(plain)
        checkpointed = copy.deepcopy(plain)
        # the name since 5.23
        enable = getattr(checkpointed, "activation_checkpointing_enable", checkpointed.gradient_checkpointing_enable)
        enable({"use_reentrant": use_reentrant})
        losses = []
        for model in (plain, checkpointed):
            torch.manual_seed(1)
            pixels = images(batch_size=4).requires_grad_()
            loss = model(pixels, labels=torch.arange(4)).loss
            loss.backward()
            losses.append(loss)
        assert all(layer.gradient_checkpointing for stage in checkpointed.svit.stages for layer in stage.layers)
        torch.testing.assert_close(losses[1], losses[0])
        assert checkpointed.svit.stages[0].layers[0].mlp_norm.num_batches_tracked == 1
        torch.testing.assert_close(dict(checkpointed.named_buffers()), dict(plain.named_buffers()))
        for (name, parameter), expected in zip(checkpointed.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")


class TestMemoryLayout:
    def test_plain_blocks_make_no_copy(self):
        config = tiny_config(super_token_sizes=[1, 1, 1, 1])
        model = SViTModel(config).eval()
        hidden_states = model.embeddings(images())
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
            for stage in model.stages:
                hidden_states = stage(hidden_states)
        assert len(profiler.events()) > 100
        # a convolution may rearrange its weights and spread its bias; feature maps are not its business
        copies = [
            names
            for names in map(names_up_to_the_root, profiler.events())
            if names[0] in {"aten::contiguous", "aten::copy_", "aten::clone"} and "aten::conv2d" not in names
        ]
        assert copies == []

    def test_gradients_stay_channels_last(self, classifier):
        layouts = []
        for stage in classifier.svit.stages:
            stage.register_full_backward_hook(
                lambda module, inputs, outputs: layouts.append(
                    outputs[0].is_contiguous(memory_format=torch.channels_last)
                )
            )
        classifier(images(), labels=torch.tensor([0, 1])).loss.backward()
        # the pooled gradient of the last stage is an expanded vector
        assert layouts[1:] == [True, True, True]


class TestCompilation:
    """With two stages, one of super tokens and one of plain attention: tracing takes its time layer by layer."""

    @pytest.fixture(autouse=True)
    def fresh_compiler(self):
        # what another test has compiled decides whether a size counts as fixed
        torch._dynamo.reset()

    def test_graph_is_whole(self):
        model = SViTForImageClassification(two_stage_config()).eval()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for pixels in (images(), images(height=75, width=101)):
            torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits)

    @pytest.mark.slow
    def test_one_graph_serves_all_sizes(self):
        model = SViTModel(two_stage_config()).eval()
        graphs = []

        def count(graph, example_inputs):
            graphs.append(graph)
            return graph.forward

        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
        num_graphs = []
        with torch.no_grad():
            for batch_size, height, width in [(2, 64, 96), (3, 75, 101), (2, 128, 64)]:
                pixels = images(batch_size, 3, height, width)
                torch.testing.assert_close(compiled(pixels).pooler_output, model(pixels).pooler_output)
                num_graphs.append(len(graphs))
        # the first call may start again, to make constants of symbolic floats
        assert num_graphs[0] == num_graphs[-1]

    # without C++, whose compiler takes minutes: inductor's own decompositions and partition
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "backend", ["aot_eager_decomp_partition", pytest.param("inductor", marks=pytest.mark.campaign)]
    )
    def test_training_step(self, backend):
        torch.manual_seed(0)
        model = SViTForImageClassification(two_stage_config()).train()
        reference = copy.deepcopy(model)
        labels = torch.tensor([0, 1])
        torch.compile(model, fullgraph=True, backend=backend)(images(), labels=labels).loss.backward()
        reference(images(), labels=labels).loss.backward()
        torch.testing.assert_close(dict(model.named_buffers()), dict(reference.named_buffers()))
        for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-3, atol=1e-4)

    @pytest.mark.slow
    @pytest.mark.parametrize("model_class", [SViTForImageClassification, SViTBackbone])
    def test_export_with_dynamic_batch_height_and_width(self, model_class):
        model = model_class(two_stage_config()).eval()
        # 17: torch.export takes a map of a single (super) token for another graph
        sizes = {
            0: torch.export.Dim("batch"),
            2: torch.export.Dim("height", min=17),
            3: torch.export.Dim("width", min=17),
        }
        exported = torch.export.export(
            model, (), {"pixel_values": images(2, 3, 64, 96)}, dynamic_shapes={"pixel_values": sizes}
        ).module()
        for batch_size, height, width in [(1, 32, 33), (3, 75, 101), (2, 64, 96)]:
            pixels = images(batch_size, 3, height, width)
            with torch.no_grad():
                outputs, expected = exported(pixel_values=pixels), model(pixels)
            for name in expected:
                torch.testing.assert_close(outputs[name], expected[name])


class TestLoading:
    def test_disk_offload(self, classifier, tmp_path):
        pytest.importorskip("accelerate")
        classifier.save_pretrained(tmp_path / "model")
        device_map = {"svit.embeddings": "cpu", "svit.stages": "disk", "svit.pooler": "cpu", "classifier": "cpu"}
        loaded = SViTForImageClassification.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
        ).eval()
        assert next(loaded.svit.stages.parameters()).device.type == "meta"
        with torch.no_grad():
            torch.testing.assert_close(loaded(images()).logits, classifier(images()).logits)

    def test_meta_device(self):
        with torch.device("meta"):
            model = SViTForImageClassification(SViTConfig())
        logits = model(torch.empty(1, 3, 224, 224, device="meta"), labels=None).logits
        assert logits.shape == (1, 2)
        assert logits.device.type == "meta"

    def test_weights_of_layers_are_never_split_over_devices(self):
        names = {type(module).__name__ for module in SViTModel(SViTConfig(depths=[1, 1, 1, 1])).modules()}
        assert set(SViTModel._no_split_modules) <= names
