"""An encoder answers the same picture alike: twice, and alone as in a batch; what does not is refused."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from fpbench.encoders import Encoder, Weights, load_encoder
from fpbench.encoders.fingerprint import alike, fingerprint, picture
from fpbench.errors import InputError
from fpbench.images import Geometry

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 64, "width": 64}, "resample": 3, "image_processor_type": "ViTImageProcessor"}  # fmt: skip


def of(module: nn.Module, dim: int) -> Encoder:
    half = (0.5, 0.5, 0.5)
    weights = Weights("random", "seed 0", "")
    return Encoder("mine", "mine", dim, Geometry("squash", 16), half, half, "own", weights, module.eval())


@pytest.fixture(params=["ViTMAEModel", "ViTMAEForPreTraining"])
def masked(request, tmp_path):
    """A masked autoencoder, as a feature extractor and as it is trained, with its decoder."""
    import transformers

    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}  # fmt: skip
    config = transformers.ViTMAEConfig(**SIZES, **decoder, image_size=64, patch_size=16)
    torch.manual_seed(0)
    getattr(transformers, request.param)(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return tmp_path


def test_a_masked_autoencoder_sees_all_patches_in_order(masked):
    one, again = (load_encoder(f"hf:{masked}", pooling="mean") for _ in range(2))
    first = one.embed([picture()])
    assert np.array_equal(first, one.embed([picture()]))
    assert np.array_equal(first, again.embed([picture()]))
    assert one.fingerprint == again.fingerprint
    x = one.normalise(torch.from_numpy(one.prepare([picture()])))
    tokens = one.module.features(x)
    assert tokens.shape == (1, 17, 32)  # the class token and all 16 patches
    embeddings, layers = one.module.model.embeddings, one.module.model.layers
    by_hand = embeddings.patch_embeddings(x) + embeddings.position_embeddings[:, 1:]
    first_token = embeddings.cls_token + embeddings.position_embeddings[:, :1]
    by_hand = torch.cat([first_token, by_hand], 1)
    for layer in layers:
        by_hand = layer(by_hand, None)
    assert torch.allclose(one.module.model.layernorm(by_hand), tokens, atol=1e-5)
    file = load_encoder(f"hf:{masked}", masked / "model.safetensors", pooling="mean")
    assert np.array_equal(first, file.embed([picture()]))


class Drops(nn.Module):
    """A dropout that eval mode does not reach."""

    def forward(self, x):
        return nn.functional.dropout(x.flatten(1), 0.5, training=True)


class Centres(nn.Module):
    """Batch statistics at test time."""

    def forward(self, x):
        x = x.flatten(1)
        return x - x.mean(0) if len(x) > 1 else x


class Compares(nn.Module):
    """One picture's share of its batch: another embedding beside another picture, at any size of a batch."""

    def forward(self, x):
        return x.flatten(1).softmax(0)


@pytest.mark.parametrize(("module", "says"), [(Drops, "twice"), (Centres, "in a batch"), (Compares, "in a batch")])
def test_an_encoder_that_answers_the_same_picture_otherwise_is_refused(module, says):
    with pytest.raises(InputError, match=says):
        _ = of(module(), 768).fingerprint


def test_the_check_costs_one_pass_and_leaves_the_fingerprint_alone():
    class Counts(nn.Module):
        sizes = ()

        def forward(self, x):
            self.sizes += (len(x),)
            return x.flatten(1)

    encoder = of(Counts(), 768)
    found = fingerprint(encoder)
    assert encoder.module.sizes == (1, 2)
    from fpbench.files import fingerprints

    assert found == fingerprints.of(encoder.embed([picture()])[0].astype(np.float64))


def test_a_network_that_only_magnifies_rounding_is_not_refused():
    """Random numbers in EfficientNetV2-S are ill-conditioned: what float32 shows there float64 does not."""

    class Steep(nn.Module):
        def forward(self, x):
            flat = x.flatten(1)
            noise = 1e-7 * len(x) if x.dtype == torch.float32 else 0  # as another kernel would round
            return flat + 1e6 * noise

    alike(of(Steep(), 768))
    encoder = load_encoder("timm:tf_efficientnetv2_s.in21k_ft_in1k", "random", geometry={"size": 64})
    assert encoder.fingerprint["dim"] == 1280
