"""The default model's parts, and that an interrupted training ends where a whole one does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from primelens.tune import decoder_stage, tower_stage
from primelens.tune.captioner import (
    BOS,
    EOS,
    MAX_NEW_TOKENS,
    PAD,
    POSITIONS,
    assemble,
    build_decoder,
    build_tower,
    caption_labels,
    decoder_inputs,
    round_to_half,
    save_checkpoint,
    scene_texts,
    train_tokenizer,
)
from primelens.tune.decoder_stage import DecoderStage, keep_states, tune_decoder
from primelens.tune.looking import CheckpointCaptioner
from primelens.tune.running import schedule
from primelens.tune.scenes.language import caption
from primelens.tune.scenes.render import FONT_PATH, font_is_installed, render
from primelens.tune.scenes.stream import stream
from primelens.tune.scenes.world import scene
from primelens.tune.tower_stage import TowerStage, load_stage, train_tower

TOKENIZER = train_tokenizer(scene_texts(400, 0))
needs_font = pytest.mark.skipif(
    not font_is_installed(), reason=f"no emoji font at {FONT_PATH} (fonts-noto-color-emoji)"
)


def test_captions_survive_the_tokenizer_and_fit() -> None:
    texts = [caption(scene("test", i)) for i in range(200)]
    labels = caption_labels(TOKENIZER, texts)
    assert labels.shape[1] <= min(POSITIONS, MAX_NEW_TOKENS)
    for row, text in zip(labels, texts, strict=True):
        ids = row[row != -100]
        assert ids[-1] == EOS
        assert TOKENIZER.decode(ids, skip_special_tokens=True).strip() == text


def test_inputs_are_labels_one_step_late() -> None:
    labels = torch.tensor([[7, 8, EOS], [9, EOS, -100]])
    assert decoder_inputs(labels).tolist() == [[BOS, 7, 8], [BOS, 9, EOS]]
    assert decoder_inputs(torch.tensor([[EOS, -100, -100]])).tolist() == [[BOS, EOS, PAD]]


def test_rounding_is_to_what_half_precision_holds() -> None:
    module = torch.nn.Linear(3, 3)
    round_to_half(module)
    assert all(torch.equal(p.half().float(), p) for p in module.parameters())
    torch.nn.init.constant_(module.bias, 1e6)
    with pytest.raises(ValueError, match="bias"):
        round_to_half(module)


def test_schedule_goes_up_stays_and_falls() -> None:
    values = [schedule(step, 100, 10) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert values[9:71] == [1.0] * 62
    assert values[70:] == sorted(values[70:], reverse=True)
    assert 0.01 <= values[-1] < 0.05


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="impossible"):
        TowerStage(steps=0)
    with pytest.raises(ValueError, match="whole batches"):
        DecoderStage(pictures=100, batch_size=64)


def test_model_size_fits_the_budget() -> None:
    model = assemble(build_tower(), build_decoder())
    assert sum(p.numel() for p in model.parameters()) <= 3_700_000


def interrupt_after(monkeypatch: pytest.MonkeyPatch, module: object, name: str, calls: int) -> None:
    inner = getattr(module, name)
    made = 0

    def outer(*args: object, **kwargs: object) -> object:
        nonlocal made
        if made == calls:
            raise KeyboardInterrupt
        made += 1
        return inner(*args, **kwargs)

    monkeypatch.setattr(module, name, outer)


@needs_font
@pytest.mark.slow
def test_stages_resume_exactly_and_make_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = TowerStage(steps=3, batch_size=2, warm_up=1, save_every=2)
    monkeypatch.setattr(tower_stage, "validate_tower", lambda *args: {})
    for module in (tower_stage, decoder_stage):
        monkeypatch.setattr(module, "stream", lambda spec, **_: stream(spec, producers=0))
    train_tower(tmp_path / "whole", stage, TOKENIZER)
    with monkeypatch.context() as broken:
        interrupt_after(broken, tower_stage, "_parts", 2)
        with pytest.raises(KeyboardInterrupt):
            train_tower(tmp_path / "halves", stage, TOKENIZER)
    train_tower(tmp_path / "halves", stage, TOKENIZER)
    whole, halves = load_stage(tmp_path / "whole"), load_stage(tmp_path / "halves")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, halves.state_dict()[name]), name

    lesson = DecoderStage(pictures=4, epochs=2, batch_size=2, warm_up=1, save_every=1)
    keep_states(tmp_path / "decoder", whole.tower, lesson)
    with pytest.raises(ValueError, match="another tower or run"):
        keep_states(tmp_path / "decoder", build_tower().eval(), lesson)
    with monkeypatch.context() as broken:
        interrupt_after(broken, decoder_stage, "_lesson", 2)
        with pytest.raises(KeyboardInterrupt):
            tune_decoder(tmp_path / "decoder", whole.decoder, lesson, TOKENIZER)
    resumed = tune_decoder(tmp_path / "decoder", whole.decoder, lesson, TOKENIZER)
    (tmp_path / "decoder" / "decoder_stage.pt").unlink()
    straight = tune_decoder(
        tmp_path / "decoder", halves.decoder, replace(lesson, save_every=100), TOKENIZER
    )
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name

    save_checkpoint(tmp_path / "checkpoint", assemble(whole.tower, resumed), TOKENIZER)
    look = CheckpointCaptioner.load(tmp_path / "checkpoint").look([render(scene("test", 0), 200)])
    assert len(look.captions) == 1
    assert look.pooled.shape == (1, 384)
    assert look.log_probability[0] < 0.0
