"""What a checkpoint's tensors are called, against models that these names were taken from."""

from __future__ import annotations

import diffusers
import pytest
import torch
from ldm.modules.diffusionmodules import openaimodel

from asag.blocks import Address, summarize
from asag.models.forge_flux import ForgeFlux
from asag.models.forge_sd3 import ForgeSd3
from asag.models.ldm_unet import LdmUnet
from asag.models.neo_image_alone import NeoAnima, NeoWan
from asag.models.neo_lumina import NeoLumina
from asag.models.neo_qwen import NeoQwen
from asag.models.neo_qwen21 import NeoQwen21
from asag.models.neo_single_stream import NeoErnie, NeoKrea
from asag.models.tensor_names import KINDS, recognize
from tests.models.test_ldm_unet import SD15, SDXL, build


def numbered(pattern: str, count: int) -> list[str]:
    return [pattern.replace("#", str(number)) for number in range(count)]


def shapes(*names: str) -> dict[str, list[int]]:
    return {name: [4, 4] for name in names}


# As the models' own repositories call them (black-forest-labs/flux, lodestones/Chroma, Stability-AI/sd3.5,
# Alpha-VLLM/Lumina-Image-2.0, Tongyi-MAI/Z-Image, Wan-Video/Wan2.1, nvidia/cosmos for Anima) and as Neo's classes do:
# what marks the kind, its layers, and tensors of other parts that must not count.
FLUX = [*numbered("double_blocks.#.img_attn.qkv.weight", 3), *numbered("double_blocks.#.txt_attn.qkv.weight", 3)]
FLUX += [*numbered("single_blocks.#.linear1.weight", 5), *numbered("single_blocks.#.linear2.weight", 5)]
LUMINA = ["cap_embedder.1.weight", "noise_refiner.0.attention.k_norm.weight"]
LUMINA += [*numbered("layers.#.attention.qkv.weight", 12), *numbered("noise_refiner.#.attention.qkv.weight", 2)]
SD3 = [*numbered("joint_blocks.#.x_block.attn.qkv.weight", 4)]
SD3 += [*numbered("joint_blocks.#.context_block.attn.qkv.weight", 4)]
QWEN = [*numbered("transformer_blocks.#.attn.to_q.weight", 6)]
QWEN += [*numbered("transformer_blocks.#.attn.add_q_proj.weight", 6)]
TABLE = {
    "Flux": (FLUX, "double.0-2, single.0-4"),
    "Chroma": ([*FLUX, "distilled_guidance_layer.in_proj.weight"], "double.0-2, single.0-4"),
    "Flux.2": ([*FLUX, "double_stream_modulation_img.lin.weight"], "double.0-2, single.0-4"),
    "SD3": (SD3, "joint.0-3"),
    "Lumina 2": (LUMINA, "layer.0-11"),
    "Z-Image": ([*LUMINA, "cap_pad_token", "x_pad_token"], "layer.0-11"),
    "Qwen-Image": ([*QWEN, "txt_norm.weight", "img_in.weight"], "joint.0-5"),
    "Krea 2": (
        [
            *numbered("blocks.#.attn.wq.weight", 11),
            *numbered("txtfusion.layerwise_blocks.#.attn.wq.weight", 2),
            "txtfusion.projector.weight",
        ],
        "layer.0-10",
    ),
    "Anima": (
        [
            *numbered("blocks.#.self_attn.q_proj.weight", 28),
            *numbered("blocks.#.cross_attn.q_proj.weight", 28),
            *numbered("blocks.#.mlp.layer1.weight", 28),
            *numbered("llm_adapter.blocks.#.self_attn.q_proj.weight", 6),
        ],
        "layer.0-27",
    ),
    "Wan": (
        [
            *numbered("blocks.#.self_attn.q.weight", 30),
            *numbered("blocks.#.cross_attn.q.weight", 30),
            "head.modulation",
        ],
        "layer.0-29",
    ),
    "Ernie-Image": (
        [*numbered("layers.#.self_attention.to_q.weight", 36), *numbered("layers.#.mlp.linear_fc2.weight", 36)],
        "layer.0-35",
    ),
}
# Text encoders and VAEs of whole checkpoints, and a copy of the weights that some training programs keep.
OTHER_PARTS = [
    *numbered("text_encoders.t5xxl.transformer.encoder.block.#.layer.0.SelfAttention.q.weight", 3),
    *numbered("text_encoders.qwen.transformer.model.layers.#.self_attn.q_proj.weight", 3),
    *numbered("vae.decoder.up_blocks.#.attentions.0.to_q.weight", 3),
    *numbered("model_ema.double_blocks.#.img_attn.qkv.weight", 9),
]


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "net.", ""])
@pytest.mark.parametrize("kind", TABLE)
def test_kinds_and_blocks(kind: str, prefix: str) -> None:
    names, blocks = TABLE[kind]
    found = recognize(shapes(*(prefix + name for name in reversed(names)), *OTHER_PARTS))
    assert found is not None
    assert (found.kind, summarize(found.addresses)) == (kind, blocks)
    assert len(set(found.addresses)) == len(found.addresses)


def test_the_second_attention_of_sd35() -> None:
    found = recognize(shapes(*SD3, *numbered("joint_blocks.#.x_block.attn2.qkv.weight", 2)))
    assert [str(address) for address in found.addresses] == [
        *("joint.0.0", "joint.0.1", "joint.1.0", "joint.1.1"),
        *("joint.2.0", "joint.3.0"),
    ]


def test_nunchakus_names_of_what_neo_guides() -> None:
    assert recognize(shapes("txt_norm.weight", *numbered("transformer_blocks.#.attn.to_qkv.qweight", 6))).kind == (
        "Qwen-Image"
    )
    zimage = recognize(shapes("cap_pad_token", *numbered("layers.#.attention.to_qkv.qweight", 3)))
    assert (zimage.kind, summarize(zimage.addresses)) == ("Z-Image", "layer.0-2")
    # Its Flux has a class that ASAG doesn't know.
    assert recognize(shapes(*numbered("single_transformer_blocks.#.mlp_fc1.qweight", 3))) is None


@pytest.mark.parametrize(
    ("layout", "depth", "width", "kind"),
    [(SD15, 1, 768, "SD1.5"), (SD15, 1, 1024, "SD2"), (SDXL, 11, 2048, "SDXL"), (SDXL, 4, 1280, "SDXL refiner")],
    ids=["SD1.5", "SD2", "SDXL", "refiner"],
)
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_unets(layout: dict, depth: int, width: int, kind: str, prefix: str) -> None:
    unet = build(layout, depth)
    # The layouts are built with texts of 24 features: theirs is what tells the kinds apart.
    tensors = {
        prefix + name: [*tensor.shape[:-1], width if "attn2.to_k" in name else tensor.shape[-1] if tensor.ndim else 1]
        for name, tensor in unet.state_dict().items()
    }
    found = recognize(tensors)
    assert (found.kind, list(found.addresses)) == (kind, [layer.address for layer in LdmUnet().layers(unet)])
    unknown = recognize({name: shape[:-1] for name, shape in tensors.items()})
    assert (unknown.kind, unknown.addresses) == ("UNet", found.addresses)


FOUR_LEVELS = {"channel_mult": [1, 2, 4, 4], "attention_resolutions": [4, 2, 1]}
THREE_LEVELS = {"channel_mult": [1, 2, 4], "attention_resolutions": [4, 2]}


@pytest.mark.parametrize(
    ("layout", "width", "heads"),
    [
        (FOUR_LEVELS | {"num_heads": 8}, 768, {8}),
        (FOUR_LEVELS | {"num_head_channels": 64}, 1024, {5, 10, 20}),
        (THREE_LEVELS | {"num_head_channels": 64}, 2048, {10, 20}),
        (THREE_LEVELS | {"num_head_channels": 64}, 1280, {10, 20}),
    ],
    ids=["SD1.5", "SD2", "SDXL", "refiner"],
)
def test_the_heads_of_unets_as_wide_as_they_are(layout: dict, width: int, heads: set[int]) -> None:
    with torch.device("meta"):
        unet = openaimodel.UNetModel(
            image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=2, context_dim=width,
            use_spatial_transformer=True, use_linear_in_transformer=True, legacy=False, **layout,
        )  # fmt: skip
    found = recognize({name: tensor.shape for name, tensor in unet.state_dict().items()})
    assert found.heads == {layer.address: layer.module.heads for layer in LdmUnet().layers(unet)}
    assert set(found.heads.values()) == heads
    # Other UNets have other numbers.
    others = {name: tensor.shape for name, tensor in unet.state_dict().items() if "attn2" not in name}
    assert recognize(others).heads == {}


@pytest.mark.parametrize("shape", [[4608, 512], [1536, 256], [49152, 1], [49152]])
def test_heads_of_a_packed_file_are_not_told(shape: list[int]) -> None:
    names = {"double_blocks.0.img_attn.qkv.weight": shape, "double_blocks.0.img_attn.norm.query_norm.scale": [128]}
    assert recognize(names).heads == {}
    names |= {"double_blocks.0.img_attn.qkv.weight": [1536, 512], "single_blocks.0.linear1.weight": shape}
    assert recognize(names).heads == {Address("double", 0, 0): 4, Address("single", 0, 0): 4}


def test_a_norm_of_all_heads_together_tells_nothing() -> None:
    wan = {"blocks.0.self_attn.q.weight": [512, 512], "blocks.0.self_attn.norm_q.weight": [512], "head.modulation": [1]}
    assert (recognize(wan).kind, recognize(wan).heads) == ("Wan", {})


def test_a_unet_without_attention_in_its_middle() -> None:
    # As SSD-1B's.
    name = "{}.1.transformer_blocks.0.attn1.to_q.weight"
    found = recognize(shapes(name.format("input_blocks.4"), name.format("output_blocks.0")))
    assert list(found.addresses) == [Address("in", 4, 0), Address("out", 0, 0)]


# name of diffusers' class: arguments, kind, blocks. Those whose files Neo takes, with diffusers' names for the tensors.
DIFFUSERS = {
    "FluxTransformer2DModel": ({"num_layers": 2, "num_single_layers": 3}, "Flux", "double.0-1, single.0-2"),
    "QwenImageTransformer2DModel": ({"num_layers": 3}, "Qwen-Image", "joint.0-2"),
    "QwenImage21Transformer2DModel": ({"num_layers": 3}, "Qwen-Image 2.1", "layer.0-2"),
    "ZImageTransformer2DModel": ({"n_layers": 3}, "Z-Image", "layer.0-2"),
}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_diffusers_names(name: str) -> None:
    arguments, kind, blocks = DIFFUSERS[name]
    with torch.device("meta"):
        model = getattr(diffusers, name)(**arguments)
    found = recognize({name: tensor.shape for name, tensor in model.state_dict().items()})
    assert (found.kind, summarize(found.addresses)) == (kind, blocks)
    heads = getattr(model.config, "num_attention_heads", None) or model.config.n_heads
    assert found.heads == dict.fromkeys(found.addresses, heads)


@pytest.mark.parametrize("name", ["SD3Transformer2DModel", "WanTransformer3DModel", "Lumina2Transformer2DModel"])
def test_what_no_host_loads_is_not_mistaken_for_another(name: str) -> None:
    with torch.device("meta"):
        model = getattr(diffusers, name)(num_layers=2)
    assert recognize({name: tensor.shape for name, tensor in model.state_dict().items()}) is None


def test_other_files_are_no_model() -> None:
    lora = numbered("lora_unet_input_blocks_#_1_transformer_blocks_0_attn1_to_q.lora_down.weight", 3)
    control = numbered("control_model.input_blocks.#.1.transformer_blocks.0.attn1.to_q.weight", 3)
    for names in ([], lora, control, OTHER_PARTS):
        assert recognize(shapes(*names)) is None


def test_every_kind_has_a_family_that_guides_it() -> None:
    families = [LdmUnet, ForgeFlux, ForgeSd3, NeoLumina, NeoQwen, NeoQwen21, NeoKrea, NeoErnie, NeoAnima, NeoWan]
    kinds = [kind for family in families for kind in family.kinds]
    assert sorted(kinds) == sorted({kind.name for kind in KINDS})
