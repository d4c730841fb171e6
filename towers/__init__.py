"""Model classes that transformers lacks. Importing this room registers them with ``AutoModel``."""

from primelens.towers.class_token import ClassTokenText, ClassTokenTextConfig
from primelens.towers.feature_map import (
    FeatureMapTower,
    FeatureMapTowerConfig,
    fold_normalisation,
)
from primelens.towers.matching import MatchingConfig, MatchingModel
from primelens.towers.pooled import PooledTower, PooledTowerConfig
from primelens.towers.prefixed import PrefixedConfig, PrefixedModel

__all__ = [
    "ClassTokenText",
    "ClassTokenTextConfig",
    "FeatureMapTower",
    "FeatureMapTowerConfig",
    "MatchingConfig",
    "MatchingModel",
    "PooledTower",
    "PooledTowerConfig",
    "PrefixedConfig",
    "PrefixedModel",
    "fold_normalisation",
]
