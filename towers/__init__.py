"""Image towers that transformers lacks. Importing this room registers them with ``AutoModel``."""

from primelens.towers.feature_map import (
    FeatureMapTower,
    FeatureMapTowerConfig,
    fold_normalisation,
)

__all__ = ["FeatureMapTower", "FeatureMapTowerConfig", "fold_normalisation"]
