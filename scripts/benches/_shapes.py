"""LLaVAs of random weights with the published tower in its real shapes.

All blocks of the tower share one block's weights, and the decoder's layers one layer's: memory of one, work of all.
"""

from __future__ import annotations

import torch

from models.guard import guard_torchvision

DECODER_LAYERS, REAL_LAYERS = 2, 32


def llava_7b() -> torch.nn.Module:
    """LLaVA-1.5-7B with two decoder layers instead of 32: 1 GB in float32."""
    text = {"model_type": "llama", "vocab_size": 256, "hidden_size": 4096, "intermediate_size": 11008}
    text |= {"num_hidden_layers": DECODER_LAYERS, "num_attention_heads": 32, "num_key_value_heads": 32}
    return full_tower(text)


def full_tower(text: dict) -> torch.nn.Module:
    """CLIP-L/14-336 (24 blocks of width 1024), a projector, and the language model of the configuration `text`."""
    guard_torchvision()
    import transformers as t

    vision = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "num_hidden_layers": 24}
    vision |= {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    with torch.device("meta"):
        model = t.LlavaForConditionalGeneration(
            t.LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=-2)
        )
    inner = model.model
    clip = getattr(inner.vision_tower, "vision_model", inner.vision_tower)
    clip.encoder.layers = torch.nn.ModuleList([clip.encoder.layers[0]] * 24)
    decoder = inner.language_model
    decoder.layers = torch.nn.ModuleList([decoder.layers[0]] * len(decoder.layers))
    model.to_empty(device="cpu")
    decoder.rotary_emb = type(decoder.rotary_emb)(config=model.config.text_config)  # its buffer was on meta
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.02)
            else:
                weight.fill_(float("norm" in name and name.endswith("weight")))
        clip.embeddings.position_ids.copy_(torch.arange(577)[None])
    return model.eval()
