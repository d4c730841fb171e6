"""Embeddings that were computed once are kept: by key, in a folder, for every process.

Importing this package opens nothing. `EmbeddingStore` is the store; `EntryKey` says what an entry
is filed under; the other modules are its parts.
"""

from primelens.store.key import EntryKey, Frame, StoredDtype
from primelens.store.outcome import Hit, Miss, StoreStats
from primelens.store.store import EmbeddingStore

__all__ = ["EmbeddingStore", "EntryKey", "Frame", "Hit", "Miss", "StoreStats", "StoredDtype"]
