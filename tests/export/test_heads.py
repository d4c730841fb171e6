"""Heads put into a bundle, exchanged and taken out; the tower stays, and so does what is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import primelens
from primelens import CacheOptions, CaptionOptions, LoadOptions
from primelens.bundle import open_bundle
from primelens.errors import CheckpointError, GateError, InputError, OptionError
from primelens.export import ExportOptions, GateOptions, export_checkpoint, verify_against
from primelens.export.checkpoint import open_checkpoint
from primelens.export.heads import HeadOptions, add_head, swap_head
from primelens.export.remake import remove_head
from primelens.head_checkpoint import of_tap, write
from primelens.model import Model
from primelens.verify import verify

GATE = GateOptions(threads=1, random_images=2, steps=8)
OPTIONS = HeadOptions(gate=GATE)
TAP = "last_hidden_state"
THREADS = LoadOptions(threads=1)

Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="module")
def exported(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("heads") / "bundle"
    export_checkpoint(checkpoints("tiny-vitgpt2"), out, ExportOptions(gate=GATE))
    return out


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy to be altered."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def moved(source: Path, target: Path, part: str, seed: int = 0) -> Path:
    """A copy of a checkpoint in which one part's weights were moved."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name in tensors:
        if name.startswith(part):
            noise = torch.randn(tensors[name].shape, generator=generator)
            tensors[name] += 0.05 * noise * tensors[name].std().nan_to_num(0)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def without_tower(source: Path, target: Path, bundle: Path) -> Path:
    """The checkpoint as tuning on kept embeddings writes it."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.")}
    assert 0 < len(rest) < len(tensors)
    save_file(rest, target / "model.safetensors", metadata={"format": "pt"})
    (target / "preprocessor_config.json").unlink()
    write(target, of_tap(open_bundle(bundle).manifest.tower, TAP, "fp16"))
    return target


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pictures(count: int) -> list[Any]:
    random = np.random.default_rng(3)
    return [random.integers(0, 256, (40, 30, 3), dtype=np.uint8) for _ in range(count)]


def texts(model: Model, head: str) -> list[tuple[int, ...]]:
    options = CaptionOptions(max_new_tokens=8, min_new_tokens=8, head=head)
    return [caption.tokens for caption in model.caption(pictures(4), options)]


def source_says(folder: Path) -> list[tuple[int, ...]]:
    """`texts`, by the source's own ``generate``."""
    checkpoint = open_checkpoint(folder)
    reference: Any = checkpoint.family.split(checkpoint.model).heads["caption"].reference
    pixels = checkpoint.preprocessing.batch(pictures(4))
    length = {"max_new_tokens": 8, "min_new_tokens": 8}
    return [tuple(tokens) for tokens in reference.generate(pixels, length, plain=True)]


def test_a_head_of_another_architecture_is_added(bundle: Path, checkpoints: Checkpoints) -> None:
    before = content(bundle)
    report = add_head(bundle, checkpoints("tiny-vitbert"), "second", OPTIONS)
    assert (report.bundle, report.passed) == (bundle, True)
    after = content(bundle)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"bundle.json", "README.md", "golden.safetensors"}
    assert {n for n in after.keys() - before.keys() if not n.startswith("second.")} == set()
    manifest = open_bundle(bundle).manifest
    assert list(manifest.heads) == ["caption", "second"]
    assert manifest.heads["second"].tokenizer == "tokenizer.json"  # it is the same one
    proof = manifest.parity["heads"]["second"]
    assert proof["pixels"]["equal"]
    assert proof["source"]["checkpoint"] == "tiny-vitbert"
    assert "second" in (bundle / "README.md").read_text()

    replayed = verify(bundle, options=THREADS)
    assert replayed.passed, replayed.lines
    names = [check.name for check in replayed.checks]
    assert {"picture 0, caption tokens", "picture 0, second tokens"} <= set(names)
    against = verify_against(bundle, checkpoints("tiny-vitbert"), replace(GATE, seed=4))
    assert against.passed, against.lines
    model = primelens.load(bundle, options=THREADS)
    assert texts(model, "second") == source_says(checkpoints("tiny-vitbert"))
    assert texts(model, "caption") == source_says(checkpoints("tiny-vitgpt2"))

    remove_head(bundle, "second")
    assert content(bundle).keys() == before.keys()
    assert open_bundle(bundle).manifest.heads == {"caption": manifest.heads["caption"]}
    assert verify(bundle, options=THREADS).passed


def test_a_swapped_head_finds_what_was_kept(
    bundle: Path, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    kept = CacheOptions(tmp_path / "kept")
    first = texts(primelens.load(bundle, options=THREADS, cache=kept), "caption")
    tuned = moved(checkpoints("tiny-vitgpt2"), tmp_path / "tuned", "decoder.")
    old = open_bundle(bundle).manifest
    assert swap_head(bundle, tuned, "caption", OPTIONS).passed
    new = open_bundle(bundle).manifest
    assert new.heads["caption"].digest != old.heads["caption"].digest
    assert new.tower == old.tower
    model = primelens.load(bundle, options=THREADS, cache=kept)
    second = texts(model, "caption")
    stats = model.cache_stats()
    assert stats is not None
    assert (stats.disk_hits, stats.misses) == (4, {})
    assert first != second == source_says(tuned)
    assert verify_against(bundle, tuned, GATE).passed
    assert not verify_against(bundle, checkpoints("tiny-vitgpt2"), GATE).passed


def test_a_head_without_a_tower(bundle: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    tuned = moved(checkpoints("tiny-vitgpt2"), tmp_path / "tuned", "decoder.", seed=1)
    bare = without_tower(tuned, tmp_path / "bare", bundle)
    add_head(bundle, bare, "bare", OPTIONS)
    proof = open_bundle(bundle).manifest.parity["heads"]["bare"]
    assert proof["fed_with"] == "what the bundle's own tower says"
    assert "pixels" not in proof
    assert proof["tokens_compared"] > 20
    assert proof["logits"]["largest_error"] < proof["logits"]["limit"]
    add_head(bundle, tuned, "whole", OPTIONS)
    model = primelens.load(bundle, options=THREADS)
    assert texts(model, "bare") == texts(model, "whole") != texts(model, "caption")
    assert verify(bundle, options=THREADS).passed
    with pytest.raises(CheckpointError, match="add-head, swap-head"):
        export_checkpoint(bare, tmp_path / "out", ExportOptions(gate=GATE))


def test_a_text_side_that_is_not_whole(
    bundle: Path, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    bare = without_tower(checkpoints("tiny-vitgpt2"), tmp_path / "bare", bundle)
    tensors = load_file(bare / "model.safetensors")
    tensors.pop("decoder.transformer.ln_f.bias")
    save_file(tensors, bare / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"ln_f\.bias: not in the files"):
        add_head(bundle, bare, "bare", OPTIONS)


def change_config(folder: Path, file: str, **fields: Any) -> None:
    data = json.loads((folder / file).read_text())
    part = data.get("encoder", data)
    part.update(fields)
    (folder / file).write_text(json.dumps(data))


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layernorm.bias"][0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (other_weights, "weights upstream of last_hidden_state: "),
        (lambda f: change_config(f, "config.json", layer_norm_eps=1e-6),
         "architecture, norm_epsilon: 1e-12, 1e-06"),
        (lambda f: change_config(f, "preprocessor_config.json", image_std=[0.5, 0.5, 0.5]),
         "preprocessing, normalize: "),
    ],
)  # fmt: skip
def test_another_tower_is_refused_and_the_difference_named(
    bundle: Path, checkpoints: Checkpoints, tmp_path: Path, change: Any, finding: str
) -> None:
    before = content(bundle)
    other = Path(shutil.copytree(checkpoints("tiny-vitgpt2"), tmp_path / "other"))
    change(other)
    with pytest.raises(CheckpointError) as caught:
        add_head(bundle, other, "second", OPTIONS)
    identity = open_bundle(bundle).manifest.tower.taps[TAP].identity
    first, *rest = caught.value.problems
    assert first.startswith(f"identity at {TAP}: the bundle's is {identity}, the checkpoint's ")
    assert len(rest) == 1
    assert rest[0].startswith(finding)
    assert content(bundle) == before


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"tower_identity": "e" * 64}, "weights or the architecture"),
        ({"tower_identity": "e" * 64, "tower_family": "swin"}, "family: vit, swin"),
        ({"tower_identity": "e" * 64, "preprocessing": {"rescale": 1}}, "preprocessing, rescale"),
        ({"tap": "pooled"}, "it was tuned on 'pooled'"),
    ],
)
def test_a_declared_tower_that_is_another_is_refused(
    bundle: Path, checkpoints: Checkpoints, tmp_path: Path, fields: dict[str, Any], finding: str
) -> None:
    bare = without_tower(checkpoints("tiny-vitgpt2"), tmp_path / "bare", bundle)
    write(bare, replace(of_tap(open_bundle(bundle).manifest.tower, TAP), **fields))
    with pytest.raises(CheckpointError) as caught:
        add_head(bundle, bare, "second", OPTIONS)
    assert any(finding in line for line in caught.value.problems)


def test_two_tokenizers_do_not_collide(
    bundle: Path, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(checkpoints("tiny-vitbert"), tmp_path / "other"))
    path = other / "tokenizer.json"
    vocab = json.loads(path.read_text())
    named = {token: n for n, token in enumerate(vocab["model"]["vocab"])}
    assert len(named) == 320
    vocab["model"]["vocab"] = {
        token: named[other] for token, other in zip(named, _turned(list(named)), strict=True)
    }
    vocab["model"]["merges"] = []
    path.write_text(json.dumps(vocab))
    add_head(bundle, other, "turned", OPTIONS)
    heads = open_bundle(bundle).manifest.heads
    assert {heads["caption"].tokenizer, heads["turned"].tokenizer} == {
        "tokenizer.json",
        "turned.tokenizer.json",
    }
    model = primelens.load(bundle, options=THREADS)
    one, two = (model.head(name=name).text.decode([70, 71, 72]) for name in heads)
    assert one != two
    assert verify(bundle, options=THREADS).passed
    remove_head(bundle, "turned")
    assert not (bundle / "turned.tokenizer.json").exists()


def _turned(tokens: list[str]) -> list[str]:
    """Another order of all but the special tokens."""
    return [*tokens[:3], *tokens[4:], tokens[3]]


def test_a_failed_gate_changes_nothing(
    bundle: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    from primelens.export import kinds

    build = kinds.build_decoder

    def wrong(plan: Any, length: int) -> Any:
        norm = replace(plan.final_norm, bias=plan.final_norm.bias + 0.1)
        return build(replace(plan, final_norm=norm), length)

    monkeypatch.setattr(kinds, "build_decoder", wrong)
    before = content(bundle)
    with pytest.raises(GateError, match="head second, logits"):
        add_head(bundle, checkpoints("tiny-vitgpt2"), "second", OPTIONS)
    assert content(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_what_is_asked_wrongly(bundle: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints("tiny-vitgpt2")
    before = content(bundle)
    with pytest.raises(OptionError, match="has a head 'caption' already"):
        add_head(bundle, source, "caption", OPTIONS)
    with pytest.raises(InputError, match="no head 'second'"):
        swap_head(bundle, source, "second", OPTIONS)
    with pytest.raises(InputError, match="It has: caption"):
        remove_head(bundle, "second")
    for name in ("", "a.b", "a/b", "ü", "x" * 65):
        with pytest.raises(OptionError, match="part of a file's name"):
            add_head(bundle, source, name, OPTIONS)
    with pytest.raises(OptionError, match="no head 'rank'"):
        add_head(bundle, source, "second", replace(OPTIONS, head="rank"))
    with pytest.raises(OptionError, match="not changed in place"):
        add_head("default", source, "second", OPTIONS)
    with pytest.raises(OptionError, match="is there already"):
        add_head(bundle, source, "second", replace(OPTIONS, out=tmp_path))
    assert content(bundle) == before


@pytest.mark.slow
def test_an_eight_bit_tower_gets_an_exact_head(checkpoints: Checkpoints, tmp_path: Path) -> None:
    options = ExportOptions(precision="int8", gate=replace(GATE, agreement=0.5))
    export_checkpoint(checkpoints("tiny-vitgpt2"), tmp_path / "bundle", options)
    chosen = replace(OPTIONS, precision="fp32", out=tmp_path / "both")
    add_head(tmp_path / "bundle", checkpoints("tiny-vitbert"), "exact", chosen)
    manifest = open_bundle(tmp_path / "both").manifest
    assert (manifest.tower.variant, manifest.heads["exact"].precision) == ("int8-rows", "fp32")
    assert "fed_with" in manifest.parity["heads"]["exact"]
    assert list(open_bundle(tmp_path / "bundle").manifest.heads) == ["caption"]
