"""The published shapes: one pass of the full-size tower for every method, and the configurations of configs/model."""

from __future__ import annotations

import torch

import pruning
from models.cache import StateCache
from models.vision_tower import VisionTower
from pruning.tokens import Question
from tests import tiny


@torch.no_grad()
def test_every_method_prunes_the_full_size_tower_to_16():
    model = tiny.full_size_tower()
    tower = VisionTower(model, StateCache())
    assert (tower.patches, tower.depth) == (576, 23)
    torch.manual_seed(1)
    pixels = torch.nn.functional.interpolate(torch.randn(1, 3, 8, 8), 336, mode="bilinear")
    words = torch.ones(1, 5, dtype=torch.bool)
    question = Question(torch.randn(1, 5, 48), words, words, clip=torch.randn(1, 1, 48))
    pruners = [pruning.load(name, 16) for name in pruning.names()]
    for pruner in (p for p in pruners if not p.inside_language_model):
        tokens = tower.survivors(pixels, pruner)
        tokens = pruner.finish(tokens, question if pruner.reads_question else None)
        keep = pruner.keeps(576)
        assert tokens.hidden.shape == (1, keep, 1024) and torch.isfinite(tokens.hidden).all()
        places = tokens.index[tokens.index >= 0]
        assert len(places.unique()) == len(places) and (tokens.index < 576).all()
        assert tower.projector(tokens.hidden).shape == (1, keep, 48)
