"""`python -m asag.lab.evaluation.image_reward ImageReward.pt TOKENIZER OUT`: ImageReward as transformers' BLIP.

ImageReward.pt has the names of BLIP's own code. TOKENIZER is a folder with the tokenizer of bert-base-uncased. OUT is
what the metric `imagereward` reads.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from asag.lab.evaluation.rewards import HEAD

# From ImageReward.py: what brings scores to a mean of 0 and a deviation of 1.
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
_RENAMED = (
    (r"^blip\.text_encoder\.", "text_encoder."),
    (r"^blip\.visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.", r"vision_model.encoder.layers.\1.self_attn."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm", r"vision_model.encoder.layers.\1.layer_norm"),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.", r"vision_model.encoder.layers.\1."),
)
_UNUSED = ("vision_proj", "text_proj", "itm_head")  # transformers' class has them, and the reward doesn't look at them
VISION = {
    **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    **{"image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6},
}
TEXT = {
    **{"vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024, "intermediate_size": 3072},
    **{"num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512},
}


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of ImageReward's tensors belongs to transformers' BLIP, under its names."""
    found = {}
    for name, value in state.items():
        for pattern, new in _RENAMED:
            if re.match(pattern, name):
                found[re.sub(pattern, new, name)] = value
                break
    return found


def convert(
    state: Mapping[str, Tensor], tokenizer: Path, out: Path, vision: Mapping[str, object], text: Mapping[str, object]
) -> None:
    """Write the folder of a model whose sizes are `vision` and `text`.

    Raises ValueError, naming the tensors, where some that count are missing.
    """
    from transformers import AutoTokenizer, BlipConfig, BlipForImageTextRetrieval, CLIPImageProcessor

    config = BlipConfig(vision_config=dict(vision), text_config=dict(text))
    model = BlipForImageTextRetrieval(config)
    found = model.load_state_dict(renamed(state), strict=False)
    # Positions are counted, and old versions keep them as a tensor.
    left = [name for name in found.missing_keys if not name.startswith(_UNUSED) and "position_ids" not in name]
    if left:
        raise ValueError(f"ImageReward.pt lacks {', '.join(left[:5])}; allowed: the file of ImageReward v1.0")
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(tokenizer, local_files_only=True).save_pretrained(out)
    side = vision["image_size"]
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    CLIPImageProcessor(**size).save_pretrained(out)
    head = {name.removeprefix("mlp."): value.contiguous() for name, value in state.items() if name.startswith("mlp.")}
    save_file({**head, "mean": torch.tensor(MEAN), "std": torch.tensor(DEVIATION)}, out / HEAD)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m asag.lab.evaluation.image_reward", description=__doc__)
    parser.add_argument("weights", type=Path, help="ImageReward.pt")
    parser.add_argument("tokenizer", type=Path, help="folder with the tokenizer of bert-base-uncased")
    parser.add_argument("out", type=Path, help="folder to write")
    args = parser.parse_args(argv)
    state = torch.load(args.weights, map_location="cpu", weights_only=True)
    convert(state, args.tokenizer, args.out, VISION, TEXT)
    print(f"Written: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
