from __future__ import annotations

from pathlib import Path

import pytest

from primelens.bench.peer_environments import PEERS, environment_of
from primelens.bench.spec import SPECS, Spec, read_spec
from primelens.errors import DependencyError, OptionError


@pytest.mark.parametrize("name", sorted(path.stem for path in SPECS.glob("*.toml")))
def test_every_shipped_spec_is_sound(name: str) -> None:
    spec = read_spec(name)
    assert spec.name == name
    assert spec.quick().blocks >= 6  # fewer pairs could not show a difference at all


def test_a_quick_look_keeps_what_tells_something() -> None:
    spec = Spec("s", model="m", scenarios=("single", "offline"), batches=(1, 4, 8), requests=9)
    assert spec.quick().batches == (8,)  # batch 1 is what single measures
    assert spec.quick().requests == 1
    alone = Spec("s", model="m", scenarios=("offline",), batches=(1, 4, 8), blocks=3)
    assert alone.quick().batches == (1, 8)
    assert alone.quick().blocks == 3


def test_the_works_that_shipped_specs_name_can_be_made() -> None:
    reference_works = pytest.importorskip("primelens.export.reference_works")
    named = {str(read_spec(path.stem).checkpoint) for path in SPECS.glob("*.toml")} - {"None"}
    assert {name.removeprefix("reference:") for name in named} <= set(reference_works.NAMES)


def test_every_finding_is_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('name = "x"\nscenario = ["single"]\nblocks = "ten"\n')
    with pytest.raises(OptionError) as caught:
        read_spec(file)
    assert "scenario: unknown key" in str(caught.value)
    assert "blocks" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"', "neither model nor checkpoint"),
        ('name = "x"\nmodel = "m"\nscenarios = ["sinlge"]', "sinlge"),
        ('name = "x"\nmodel = "m"\nlengths = ["long"]', "long"),
        ('name = "x"\nmodel = "m"\nblocks = 1', "at least 2"),
        ('name = "x"\nmodel = "m"\nbatches = []', "batches"),
        ('name = "x"\nmodel = "m"\nload = 1.5', "load"),
        ("name = ", "not TOML"),
    ],
)
def test_a_bad_spec_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(OptionError, match=said):
        read_spec(file)


def test_an_unknown_name_lists_the_shipped() -> None:
    with pytest.raises(OptionError, match="vitgpt2-base"):
        read_spec("nonsense")


def test_the_digest_covers_every_field() -> None:
    one = Spec("x", model="m")
    assert one.digest == Spec("x", model="m").digest
    assert one.digest != Spec("x", model="m", tokens=21).digest


@pytest.mark.parametrize("peer", sorted(PEERS))
def test_every_peer_has_exact_pins(peer: str, tmp_path: Path) -> None:
    environment = environment_of(peer, tmp_path)
    lines = environment.pins.read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all("==" in pin and "+" not in pin for pin in pins)
    # vLLM itself pins the torch that its kernels were compiled for; all others must say theirs.
    assert any(pin.startswith(("torch==", "vllm==")) for pin in pins)


def test_an_environment_of_other_pins_does_not_count(tmp_path: Path) -> None:
    environment = environment_of("optimum", tmp_path)
    with pytest.raises(DependencyError, match="peers build optimum"):
        environment.require()
    environment.folder.mkdir()
    stamp = environment.folder / "primelens-pins.sha256"
    stamp.write_text("0" * 64)
    assert not environment.built
    stamp.write_text(environment.digest)
    assert environment.built
    assert environment.require() == environment.python


def test_a_failed_build_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_of("optimum", tmp_path)
    monkeypatch.setattr("primelens.bench.peer_environments.sys.executable", "/bin/false")
    with pytest.raises(DependencyError, match="failed"):
        environment.build()
    assert not environment.built


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(OptionError, match="Known peers"):
        environment_of("tensorflow")
