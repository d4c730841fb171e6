"""Peers' backends run in environments of their own; here they are tested with our torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primelens.bench.peers.generate import GeneratePeer, _image_processor, open_peer
from primelens.bench.pictures import PictureSource

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    (path,) = PictureSource(tmp_path_factory.mktemp("pictures"), 0).fresh(1)
    return path


def saved(model: Any, folder: Path) -> str:
    import torch

    from primelens.export.companions import write_companions

    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    write_companions(folder, vocab_size=64, size=16)
    return str(folder)


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import BlipConfig, BlipForConditionalGeneration

    text = {**_SIZES, "vocab_size": 64, "max_position_embeddings": 32, "encoder_hidden_size": 32}
    text |= {"bos_token_id": 0, "sep_token_id": 7, "eos_token_id": 2, "pad_token_id": 2}
    vision = {**_SIZES, "image_size": 16, "patch_size": 8}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    folder = tmp_path_factory.mktemp("blip")
    return saved(BlipForConditionalGeneration(config), folder)


def request(picture: str, **fields: Any) -> dict[str, Any]:
    return {
        "index": 0,
        "picture": picture,
        "want": "caption",
        "max_new_tokens": 6,
        "forced": True,
        "beams": 1,
        **fields,
    }


def test_blip_generates_as_by_itself(blip: str, picture: str) -> None:
    import torch

    peer = open_peer("transformers", {"checkpoint": blip, "name": "hf"})
    (answer,) = peer.answer([request(picture)])
    with torch.inference_mode():
        from PIL import Image

        pixels = peer._processor(images=[Image.open(picture)], return_tensors="pt")["pixel_values"]
        wanted = peer._model.generate(pixel_values=pixels, max_new_tokens=6, min_new_tokens=6)
    assert answer["tokens"] == wanted[0, -6:].tolist()
    assert len(answer["token_times"]) == 6
    assert answer["stages"]["tower"] > 0
    assert peer.describe()["opening"]["load"] > 0


def test_a_blip_caption_ends_at_the_separator(blip: str) -> None:
    peer = open_peer("transformers", {"checkpoint": blip, "name": "hf"})
    assert peer._cut([9, 2, 8, 7, 2, 2], request("", forced=False)) == [9, 2, 8, 7]
    assert peer._cut([9, 7, 8], request("", forced=True)) == [9, 7, 8]


def test_a_dual_encoder_encodes_and_cannot_caption(
    picture: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from transformers import CLIPConfig, CLIPModel

    text = {**_SIZES, "vocab_size": 64, "max_position_embeddings": 16}
    vision = {**_SIZES, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    folder = saved(CLIPModel(config), tmp_path_factory.mktemp("clip"))
    peer = open_peer("transformers", {"checkpoint": folder, "name": "hf"})
    (answer,) = peer.answer([request(picture, want="encode")])
    assert answer["stages"]["tower"] > 0
    with pytest.raises(AttributeError, match="generate"):
        peer.answer([request(picture)])


def test_the_pillow_processor_serves_where_torchvision_is_wanted(
    blip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def refuse(*_: Any, **__: Any) -> None:
        raise ImportError("AutoImageProcessor requires the Torchvision library")

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", refuse)
    assert type(_image_processor(blip)).__name__ == "ViTImageProcessorPil"


def test_every_peer_is_a_way_of_generating() -> None:
    from primelens.bench.peer_environments import PEERS
    from primelens.bench.peers import generate

    assert generate.PEERS.keys() == PEERS.keys() - {"vllm"}  # which has an interface of its own
    assert all(issubclass(peer, GeneratePeer) for peer in generate.PEERS.values())
