"""Real photographs through a real (tiny, random) bundle: from the data to a whole report.

Nothing is said about quality: the models know no word. It shows that real data flows.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from primelens.cli.app import app
from primelens.tune.data import DataSource, check_images, read_examples

pytestmark = pytest.mark.slow

PAD, START, END, WIDTH, SIZE = 0, 1, 2, 32, 32


def checkpoint(folder: Path, text_seed: int) -> Path:
    """ViT and GPT-2; the tower is always the same, the text side follows the seed."""
    encoder = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=WIDTH,
        image_size=SIZE,
        patch_size=8,
    )
    decoder = transformers.GPT2Config(
        n_embd=WIDTH,
        n_layer=1,
        n_head=2,
        vocab_size=260,
        n_positions=32,
        add_cross_attention=True,
        is_decoder=True,
        bos_token_id=START,
        eos_token_id=END,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = transformers.VisionEncoderDecoderModel(config).eval()
    for part, seed in ((model.encoder, 0), (model.decoder, text_seed)):
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in part.named_parameters():
                is_scale = name.endswith("weight") and ("norm" in name or "ln_" in name)
                parameter.copy_(torch.randn_like(parameter) * 0.3 + float(is_scale))
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id = START
        settings.pad_token_id = PAD
        settings.eos_token_id = END
    model.generation_config.max_new_tokens = 10
    model.save_pretrained(folder)
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
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two text sides on one tower."""
    folder = tmp_path_factory.mktemp("models")
    made = []
    for seed in (1, 2):
        source, out = checkpoint(folder / f"checkpoint{seed}", seed), folder / f"side{seed}"
        result = CliRunner().invoke(
            app, ["export", str(source), "--out", str(out), "--threads", "1"]
        )
        assert result.exit_code == 0, result.output
        made.append(out)
    return made


def test_the_photographs_are_sound(shared_data: Path) -> None:
    found = check_images(read_examples(DataSource(shared_data / "photos")))
    assert (found.pictures, found.broken, found.leaks, found.repeated) == (51, (), (), 0)


def test_ten_held_out_photographs_give_a_whole_report(
    shared_data: Path, bundles: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "report"
    arguments = ["evaluate", bundles[0], "--data", shared_data / "photos", "--holdout", "10"]
    arguments += ["--against", bundles[1], "--untuned", bundles[1], "--out", out]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert report["pictures"] == 10
    assert report["broken"] == []
    first, second = report["tables"]
    assert len(first["rows"]) == 5
    assert [*first["rows"], "a human"] == list(second["rows"])
    # People wrote these references, and the random models know no word.
    human = second["rows"]["a human"]["CIDEr-D"]
    neighbour = second["rows"]["nearest neighbour's caption"]["CIDEr-D"]
    assert human["low"] > neighbour["value"] > 0
    assert len(set(report["provenance"].values())) == 1  # one tower, two text sides
    again = ["evaluate", out / "results.json", "--data", shared_data / "photos", "--limit", "5"]
    failed = CliRunner().invoke(app, [str(argument) for argument in again])
    assert failed.exit_code == 1
    assert "says nothing of" in failed.stderr
