"""A head whose decoder reads the picture as a prefix of its own text.

The connector makes of the tap what the decoder's own layers keep of the picture: keys and values of
P positions in every layer, computed once per picture. All sequences of a picture continue from that
one copy (`primelens.decoding.tree_session`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from primelens.bundle import Bundle
from primelens.decoding.effective import Effective
from primelens.decoding.search import Search
from primelens.decoding.tree_session import TreeSession, tree_capacity, tree_slots
from primelens.engine import Engine, Graph
from primelens.errors import EngineError
from primelens.head import Asked, TextHead, Workspace, decoder_problems, differences
from primelens.options import CaptionOptions

__all__ = ["PrefixHead"]


class PrefixHead(TextHead):
    """One head of a bundle with ``decoder.prefix``; thread-safe."""

    continuous = False

    def _open_decoder(self, bundle: Bundle, engine: Engine) -> Graph:
        try:
            return super()._open_decoder(bundle, engine)
        except EngineError as error:
            raise EngineError(
                f"The head {self.name!r} cannot be opened: {error}",
                remedy="Decoders that read the picture as a prefix need ONNX Runtime 1.32 or "
                "newer, on the CPU.",
            ) from error

    def _contract_problems(self) -> list[str]:
        sizes = self.spec.decoder
        tree: dict[str, tuple[int | None, ...]] = {
            "query_seqlens": (None,),
            "attention_bias": (None, 1, None, None),
        }
        kept = (None, sizes.kv_heads, sizes.prefix, sizes.head_dim)
        prefix: dict[str, tuple[int | None, ...]] = {
            f"prefix_{kind}.{layer}": kept
            for layer in range(sizes.layers)
            for kind in ("key", "value")
        }
        found = {name: tensor.shape for name, tensor in self._connector.outputs.items()}
        return (
            decoder_problems(self._decoder, sizes, tree)
            + self._connector_problems()
            + differences("connector output", prefix, found)
        )

    def _search(
        self, wanted: Effective, asked: Sequence[Asked], options: CaptionOptions
    ) -> tuple[Search, int]:
        """The search, and the most slots that one picture's sequences take behind the prefix."""
        search, _ = super()._search(wanted, asked, options)
        slots = []
        for _, some in groupby(asked, key=lambda item: item.picture):
            prompts = [self.prompt(item.text) for item in some]
            new = self.limits(prompts, options).max_new_tokens
            slots.append(tree_slots(prompts, sum(new) * wanted.rows_per_picture))
        return search, max(slots)

    def _room(self, need: int) -> int:
        return tree_capacity(self.spec.decoder, need)

    def _build(self, shape: tuple[int, ...], capacity: int) -> Workspace:
        images, rows = shape
        connector = self._bind_connector(images)
        session = TreeSession(
            self._decoder,
            self.spec.decoder,
            rows=rows,
            capacity=capacity,
            prefix=connector.outputs,
        )
        return Workspace(shape, capacity, connector, session)
