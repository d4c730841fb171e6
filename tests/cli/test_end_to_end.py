"""The whole way on the command line: a checkpoint, a bundle, its proof, captions, an altered copy.

The model is tiny and random; nothing is faked.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from primelens.cli.app import app

Run = Callable[..., Result]

pytestmark = pytest.mark.slow

PAD, START, END, WIDTH, SIZE = 0, 1, 2, 32, 32


def _model() -> transformers.VisionEncoderDecoderModel:
    """ViT and GPT-2 with every parameter random, norms and biases too."""
    encoder = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        image_size=SIZE,
        patch_size=8,
    )
    decoder = transformers.GPT2Config(
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        vocab_size=260,
        n_positions=64,
        add_cross_attention=True,
        is_decoder=True,
        bos_token_id=START,
        eos_token_id=END,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    torch.manual_seed(0)
    model = transformers.VisionEncoderDecoderModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = name.endswith("weight") and ("norm" in name or ".ln_" in name)
            parameter.copy_(torch.randn_like(parameter) * 0.3 + float(is_scale))
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id = START
        settings.pad_token_id = PAD
        settings.eos_token_id = END
    model.generation_config.max_new_tokens = 12
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny captioner as ``save_pretrained`` writes it, with a tokenizer of single bytes."""
    folder = tmp_path_factory.mktemp("checkpoint")
    _model().save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": PAD, "<s>": START, "</s>": END, "<unk>": 3}
    vocabulary |= {symbol: number + 4 for number, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's bundle, exported by the command."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    arguments = ["export", str(checkpoint), "--out", str(folder), "--threads", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "equal to its source" in result.stdout
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three different pictures and a broken one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(1)
    for number in range(3):
        pixels = random.integers(0, 256, (40 + 10 * number, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    return folder


def test_verify_replays_the_golden_outputs(run: Run, bundle: Path) -> None:
    result = run("verify", bundle)
    assert result.exit_code == 0, result.output
    assert "FAILED" not in result.stdout
    assert "verified" in result.stdout


def test_verify_against_the_source_proves_it_again(
    run: Run, bundle: Path, checkpoint: Path
) -> None:
    result = run("verify", bundle, "--against", checkpoint)
    assert result.exit_code == 0, result.output
    assert "FAILED" not in result.stdout


def test_a_kept_embedding_gives_the_same_caption(
    run: Run, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    picture = photos / "photo0.png"
    arguments = ["caption", picture, "--model", bundle, "--json", "--cache", tmp_path / "kept"]
    rows = [json.loads(run(*arguments).stdout) for _ in range(2)]
    assert [row["cache"] for row in rows] == ["miss", "hit"]
    assert rows[0]["tokens"] == rows[1]["tokens"]
    assert rows[0]["logprob"] == rows[1]["logprob"]
    assert rows[1]["timings_ms"]["tower"] == 0


def test_pictures_encoded_ahead_need_no_tower_later(
    run: Run, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    kept = ("--model", bundle, "--cache", tmp_path / "kept", "--cache-dtype", "fp16", "--json")
    encoded = run("encode", photos, *kept)
    assert encoded.exit_code == 1  # one of them is broken
    assert "3 encoded, 0 kept before, 1 failed" in encoded.stderr
    rows = [json.loads(line) for line in run("caption", photos, *kept).stdout.splitlines()]
    assert [row["cache"] for row in rows if row["status"] == "ok"] == ["hit"] * 3
    assert "3 embeddings" in run("cache", "info", tmp_path / "kept").stdout


def test_a_bundle_declares_its_sources_digests(run: Run, bundle: Path, checkpoint: Path) -> None:
    declared = json.loads(run("digest", bundle, "--json").stdout)
    computed = json.loads(run("digest", checkpoint, "--json").stdout)
    for part in ("tower_family", "preprocessing", "taps", "heads", "source"):
        assert declared[part] == computed[part]
    assert declared["connectors"]["caption"] in (bundle / "bundle.json").read_text()
    assert run("verify-locked", checkpoint, checkpoint).exit_code == 0


def test_info_names_the_source(run: Run, bundle: Path, checkpoint: Path) -> None:
    assert checkpoint.name in run("info", bundle).stdout
    manifest = json.loads(run("info", bundle, "--json").stdout)
    assert manifest["source"]["checkpoint"] == checkpoint.name
    assert Path(manifest["folder"]) == bundle


def test_captions_do_not_depend_on_batches_or_streaming(
    run: Run, bundle: Path, photos: Path
) -> None:
    def rows(*flags: str) -> list[tuple[str, str, list[int]]]:
        result = run("caption", photos, "--model", bundle, "--json", *flags)
        assert result.exit_code == 1  # the broken picture
        found = [json.loads(line) for line in result.stdout.splitlines()]
        return [(r["image"], r["status"], r.get("tokens", [])) for r in found]

    together, apart = rows(), rows("--batch-size", "1")
    assert together == apart
    assert [status for _, status, _ in together] == ["error", "ok", "ok", "ok"]
    assert len({tuple(tokens) for _, _, tokens in together}) == 4
    plain = run("caption", photos, "--model", bundle)
    streamed = run("caption", photos, "--model", bundle, "--stream")
    assert streamed.stdout.splitlines() == plain.stdout.splitlines()


def test_the_captions_are_the_sources_own(
    run: Run, bundle: Path, checkpoint: Path, photos: Path
) -> None:
    source = transformers.VisionEncoderDecoderModel.from_pretrained(checkpoint).eval()
    processor = transformers.ViTImageProcessorPil.from_pretrained(checkpoint)
    result = run("caption", *sorted(photos.glob("*.png")), "--model", bundle, "--json")
    for row in map(json.loads, result.stdout.splitlines()):
        with Image.open(row["image"]) as image:
            pixels = processor(image.convert("RGB"), return_tensors="pt").pixel_values
        ids = source.generate(pixels)[0].tolist()
        assert row["tokens"] == ids[1 : 1 + len(row["tokens"])]
        assert set(ids[1 + len(row["tokens"]) :]) <= {PAD}


def test_an_altered_copy_is_refused_by_name(run: Run, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    altered = copy / "golden.safetensors"
    content = bytearray(altered.read_bytes())
    content[-1] ^= 1
    altered.write_bytes(content)
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "golden.safetensors: content differs" in result.stderr


def test_a_bundle_is_not_overwritten_unasked(run: Run, bundle: Path, checkpoint: Path) -> None:
    before = (bundle / "bundle.json").read_bytes()
    result = run("export", checkpoint, "--out", bundle)
    assert result.exit_code == 1
    assert result.stderr.endswith("is there already. Give another name, or add --overwrite.\n")
    assert (bundle / "bundle.json").read_bytes() == before
