"""Adam in one pass over weights, gradients and averages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer


def fused_adam(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> Adam:
    """Adam as torch defines it, by its fused kernels; with ``weight_decay`` AdamW.

    The decay spares what has one axis: biases, norms, scales. A state that was saved by another
    implementation, or of weights of other strides, is taken over.
    """
    if weight_decay:
        every = list(parameters)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in every if (p.ndim > 1) == decays], "weight_decay": share}
            for decays, share in ((True, weight_decay), (False, 0.0))
        ]
        optimizer: Adam = AdamW(groups, lr=lr, fused=True)
    else:
        optimizer = Adam(parameters, lr=lr, fused=True)
    # Else the kernel would divide by the loss scale itself, and Lightning refuses to clip gradients then.
    optimizer._step_supports_amp_scaling = False
    optimizer.register_load_state_dict_post_hook(_as_built)
    return optimizer


@torch.no_grad()
def _as_built(optimizer: Optimizer) -> None:
    """Lay out a loaded state as the weights are: the kernel goes through all of them by address alone."""
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = True, None
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state:
                    state[name] = torch.empty_like(parameter).copy_(state[name])
            if "step" in state:
                step = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)
                state["step"] = step.clone()  # torch loads the very tensors of the other optimizer
