"""Muon on the matrices, AdamW on the rest: on this model worth several times as many steps of AdamW alone."""

import torch


@torch.no_grad()
def orthogonal(gradients: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """(..., n, m): the nearest matrices with singular values near 1, by Newton and Schulz's iteration in bf16.

    Source: Keller Jordan and others, "Muon: an optimizer for hidden layers in neural networks" (2024); the coefficients are theirs.
    """
    x = gradients.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).float()


class Optimiser:
    """`named`: parameters by name. Names decide nothing but how the state is stored, so that it survives a change of order."""

    def __init__(self, named: list[tuple[str, torch.nn.Parameter]], is_matrix, rate: float, rest_rate: float, decay: float = 0.01):
        self.matrices = [(name, p) for name, p in named if is_matrix(name, p)]
        rest = [(name, p) for name, p in named if not is_matrix(name, p)]
        self.rest_names = [name for name, _ in rest]
        self.rate, self.rest_rate, self.decay, self.momentum = rate, rest_rate, decay, 0.95
        self.averages = {name: torch.zeros_like(p) for name, p in self.matrices}
        self.by_shape = {}
        for name, p in self.matrices:
            self.by_shape.setdefault(tuple(p.reshape(p.shape[0], -1).shape), []).append((name, p))
        self.adam = torch.optim.AdamW([p for _, p in rest], lr=rest_rate, betas=(0.9, 0.98), weight_decay=0, fused=True)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """factor: what the learning rates are multiplied by."""
        for group in self.adam.param_groups:
            group["lr"] = self.rest_rate * factor
        self.adam.step()
        for shape, members in self.by_shape.items():
            members = [(name, p) for name, p in members if p.grad is not None]
            if not members:
                continue
            gradients = [p.grad for _, p in members]
            averages = [self.averages[name] for name, _ in members]
            torch._foreach_lerp_(averages, gradients, 1 - self.momentum)
            ahead = [torch.lerp(g, a, self.momentum).reshape(shape) for g, a in zip(gradients, averages)]
            # 0.2 sqrt(longer side) makes an update about as large as one of AdamW's.
            updates = orthogonal(torch.stack(ahead)) * (-self.rate * factor * 0.2 * max(shape) ** 0.5)
            for (_, p), update in zip(members, updates):
                p.mul_(1 - self.rate * factor * self.decay).add_(update.reshape(p.shape))

    def zero(self) -> None:
        for _, p in self.matrices:
            p.grad = None
        self.adam.zero_grad(set_to_none=True)

    def state(self) -> dict:
        return dict(muon=dict(self.averages), adam=self.adam.state_dict(), adam_names=self.rest_names)

    def load(self, state: dict) -> None:
        if state["adam_names"] != self.rest_names:
            raise SystemExit("the optimiser's state is that of a model with other parameters")
        for name, average in self.averages.items():
            average.copy_(state["muon"][name])
        self.adam.load_state_dict(state["adam"])
