from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from primelens.bench.captioner import caption_head, require_caption_head
from primelens.bundle import open_bundle
from primelens.errors import OptionError


def test_the_first_head_that_captions_is_measured(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle, check="size").manifest
    head = caption_head(manifest)
    assert head is not None
    assert head.kind == "caption"
    assert require_caption_head(manifest) is head


def test_a_bundle_without_one_says_what_can_be_measured(tiny_bundle: Path) -> None:
    manifest = replace(open_bundle(tiny_bundle, check="size").manifest, heads={})
    assert caption_head(manifest) is None
    with pytest.raises(OptionError, match="encode"):
        require_caption_head(manifest)
