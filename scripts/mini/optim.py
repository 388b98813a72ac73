"""Muon for the matrices inside the blocks, AdamW for the rest; one object for both."""

import torch
from torch import Tensor, nn


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz: about the nearest semi-orthogonal matrix of g (r, c)."""
    flip = g.shape[0] > g.shape[1]
    x = g.T if flip else g
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if flip else x


class Mixed:
    """Optimizer over the parameters of module that require gradients; the schedule is the factor given to step."""

    def __init__(self, module: nn.Module, rate: float, matrix_rate: float, tower_share: float = 1.0, decay: float = 0.01):
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        share = [(n, p, tower_share if n.startswith("tower.") else 1.0) for n, p in named]
        self.matrices = [(p, s) for n, p, s in share if p.ndim == 2 and "layers." in n]
        rest = [(p, s) for n, p, s in share if not (p.ndim == 2 and "layers." in n)]
        groups = [{"params": [p for p, s in rest if s == x], "share": x} for x in sorted({s for _, s in rest})]
        self.adam = torch.optim.AdamW(groups, rate, betas=(0.9, 0.98), weight_decay=decay)
        self.momentum = [torch.zeros_like(p) for p, _ in self.matrices]
        self.rate, self.matrix_rate, self.decay = rate, matrix_rate, decay

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        for g in self.adam.param_groups:
            nn.utils.clip_grad_norm_(g["params"], 1.0)
            g["lr"] = self.rate * scale * g["share"]
        self.adam.step()
        for (p, share), m in zip(self.matrices, self.momentum, strict=True):
            if p.grad is None:
                continue
            rate = self.matrix_rate * scale * share
            m.mul_(0.95).add_(p.grad)
            p.mul_(1 - rate * self.decay)
            p.add_(orthogonal(p.grad + 0.95 * m), alpha=-rate * max(1, p.shape[0] / p.shape[1]) ** 0.5)
        for p, _ in self.matrices:
            p.grad = None
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return {"adam": self.adam.state_dict(), "momentum": self.momentum}

    def load_state_dict(self, state: dict) -> None:
        self.adam.load_state_dict(state["adam"])
        for m, s in zip(self.momentum, state["momentum"], strict=True):
            m.copy_(s)
