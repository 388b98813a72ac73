"""One training loop for all stages: resumable, checkpoints written whole or not at all, a CSV row every few iterations."""

import csv
import os
import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from .join import Joined, evaluate, make_batch, pack_batch, token_losses
from .optim import Mixed
from .packing import answer_loss, score
from .stages import COLD, LABEL_WEIGHTS, Stage
from .tower import tower_losses
from .world import PX, World

LANGUAGE_TABLES = ("language.llama.embed_tokens", "language.digit", "language.where", "language.heart", "language.ground")


def save_whole(state: dict, path: Path) -> None:
    """Writes beside path, then renames."""
    tmp = path.with_suffix(".tmp")
    torch.save(state, tmp)
    os.replace(tmp, path)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint (.pt) or of a warm start (.safetensors), in float32."""
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu")["model"]
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def set_trainable(model: Joined, stage: Stage) -> None:
    """Marks what this stage may change."""
    for name, p in model.named_parameters():
        half = name.startswith("language.")
        p.requires_grad = {"tower": not half, "language": half, "join": True}[stage.part]
        if half and stage.fixed_symbols and name.startswith(LANGUAGE_TABLES):
            p.requires_grad = False


def step_losses(model: Joined, stage: Stage, world: World) -> tuple[torch.Tensor, dict, dict]:
    """One batch: the loss, single figures by name, right answers by question type."""
    batch = make_batch(world, stage.batch, stage.px, stage.objects, stage.questions, n_questions=stage.per_scene,
                       p_sign=stage.p_sign, n_signs=stage.n_signs, pixels=stage.part != "language")
    t, xy, seen, right = batch["t"], batch["xy"], {}, {}
    loss = torch.zeros(())
    if stage.part == "language":
        blurred = xy + torch.randn_like(xy) * stage.place_noise
        visual = model.language.symbols(t, blurred)
        visual = visual + torch.randn_like(visual) * stage.noise
    else:
        read, last = model.tower(batch["pixels"], batch["corner"])
        labels, scores = tower_losses(model.tower, read, last, t, batch["side"])
        loss = loss + stage.w_label * sum(LABEL_WEIGHTS[k] * v for k, v in labels.items())
        miss = (model.absolute(read[:, 1:]) - xy).abs().mean()
        visual = model.project(read)
        tokens = token_losses(model.language, visual, t, xy)
        loss = loss + stage.w_absolute * miss + stage.w_token * sum(stage.token_weights[k] * v for k, v in tokens.items())
        seen |= {"centre_px": miss * PX / 2, **{f"token_{k}": v for k, v in tokens.items()}, **labels, **scores}
    if stage.part != "tower":
        q = pack_batch(batch, world.rng)
        logits = model.language.logits(visual, q)
        answer = answer_loss(logits, q)
        loss, seen["answer"] = loss + stage.w_answer * answer, answer
        score(logits.detach(), q, right)
    return loss, {k: float(v.detach()) for k, v in seen.items()}, right


def rate_scale(stage: Stage, iteration: int, minutes: float) -> float:
    """Warm-up over iterations, flat, then linear down to `end` over the last share of the minutes."""
    left = (1 - minutes / stage.minutes) / (1 - stage.flat)
    return min(1.0, (iteration + 1) / stage.warm) * max(stage.end, min(1.0, left))


def append_row(path: Path, row: dict, fields: list[str]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as f:
        writer = csv.DictWriter(f, fields, restval="", extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)


def run_stage(stage: Stage, folder: Path, warm_start: Path | None, every: int = 25, save_minutes: float = 2.0) -> Joined:
    """Runs one stage to its end, from its own checkpoint where there is one. Checkpoint and log go to folder."""
    torch.set_num_threads(stage.threads)
    path = folder / f"{stage.name}.pt"
    torch.manual_seed(stage.seed)
    random.seed(stage.seed)
    model = Joined()
    state = torch.load(path, map_location="cpu") if path.exists() else None
    if state:
        model.load_state_dict(state["model"])
    else:
        for source in stage.after:  # a later source overrides what it trained
            name, _, prefix = source.partition(":")
            weights = read_weights(warm_start if warm_start and name in COLD else folder / f"{name}.pt")
            model.load_state_dict({k: v for k, v in weights.items() if k.startswith(prefix)}, strict=False)
    set_trainable(model, stage)
    optimizer = Mixed(model, stage.rate, stage.matrix_rate, stage.tower_share)
    iteration, before = (state["iteration"], state["minutes"]) if state else (0, 0.0)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    world = World(stage.seed * 100_000 + iteration)
    torch.manual_seed(stage.seed * 100_000 + iteration)
    figures, right = defaultdict(list), defaultdict(list)
    start, saved, minutes = time.time(), time.time(), before

    def save() -> None:
        save_whole({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration, "minutes": minutes}, path)

    while minutes < stage.minutes:
        loss, seen, answered = step_losses(model, stage, world)
        loss.backward()
        optimizer.step(rate_scale(stage, iteration, minutes))
        iteration, minutes = iteration + 1, before + (time.time() - start) / 60
        for k, v in seen.items():
            figures[k].append(v)
        for k, v in answered.items():
            right[k] += v
        if iteration % every == 0:
            row = {k: round(float(np.mean(v)), 4) for k, v in {**figures, **{f"q_{k}": v for k, v in right.items()}}.items()}
            row = {"iteration": iteration, "minutes": round(minutes, 2), **dict(sorted(row.items()))}
            print(stage.name, " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
            append_row(folder / f"{stage.name}.csv", row, list(row))
            figures, right = defaultdict(list), defaultdict(list)
        if time.time() - saved > save_minutes * 60:
            save()
            saved = time.time()
    save()
    result = evaluate(model, stage.questions, symbolic=stage.part == "language") if stage.part != "tower" else {}
    print(stage.name, "done at", iteration, {k: round(v, 3) for k, v in result.items()}, flush=True)
    return model
