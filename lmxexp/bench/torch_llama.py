"""A llama as one would write it in PyTorch, and its training: what lmxexp's step is compared with.

Tied embeddings, RMSNorm, rotary positions, grouped queries, SwiGLU. Modules bear the names of ``model=llama``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lmxexp.bench.shape import Shape


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``(B, H, L, C)`` turned by the angles of its positions, ``(L, C / 2)``; elements half a head apart are a pair."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """Causal attention, ``(B, L, D) -> (B, L, D)``."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.d_model, s.n_heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.d_model, s.n_kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.d_model, s.n_kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.n_heads * s.head_dim, s.d_model, bias=False)
        frequencies = s.rope_theta ** (-torch.arange(0, s.head_dim, 2) / s.head_dim)
        angles = torch.outer(torch.arange(s.seq_len), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, L, _ = x.shape
        q, k, v = (project(x).view(B, L, -1, self.s.head_dim) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        q, k = (rotate(t, self.cos.to(t.dtype), self.sin.to(t.dtype)) for t in (q, k))
        grouped = self.s.n_kv_heads != self.s.n_heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self.o_proj(y.transpose(1, 2).reshape(B, L, -1))


class FeedForward(nn.Module):
    """SwiGLU, ``(B, L, D) -> (B, L, D)``."""

    def __init__(self, s: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(s.d_model, s.d_ff, bias=False)
        self.up_proj = nn.Linear(s.d_model, s.d_ff, bias=False)
        self.down_proj = nn.Linear(s.d_ff, s.d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm, ``(B, L, D) -> (B, L, D)``."""

    def __init__(self, s: Shape):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(s.d_model, eps=s.eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = nn.RMSNorm(s.d_model, eps=s.eps)
        self.mlp = FeedForward(s)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Token ids ``(B, L)`` and their targets to the mean cross-entropy, in nats."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.d_model)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = nn.RMSNorm(shape.d_model, eps=shape.eps)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(inputs)
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def n_params(self) -> int:
        """The tied matrix counts once."""
        return sum(p.numel() for p in self.parameters())

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take the weights of lmxexp's ``model=llama``, by their names there."""
        named = {name.removeprefix("embedding."): torch.from_numpy(a) for name, a in weights.items()}
        self.load_state_dict(named)


class Training:
    """Fused AdamW with clipping, decay on matrices only.

    Args:
        model: on the device that it is trained on.
        precision: "fp32", "bf16" (weights and the optimizer's state as well) or "mixed" (autocast).
        compile: whether ``torch.compile`` makes forward and backward.
        mode: of ``torch.compile``; "reduce-overhead" records CUDA graphs.
        rates: the learning rate of each step; the last holds on.
        max_grad_norm: None: not clipped.
    """

    def __init__(
        self,
        model: Llama,
        *,
        precision: str,
        compile: bool,
        mode: str = "default",
        rates: Sequence[float] = (1e-3,),
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        max_grad_norm: float | None = 1.0,
    ):
        if precision == "bf16":
            model.to(torch.bfloat16)
        self.model, self.precision, self.rates, self.max_grad_norm = model, precision, rates, max_grad_norm
        self.device = next(model.parameters()).device
        self.forward: Any = model
        if compile:
            self.forward = torch.compile(model, mode=mode, dynamic=False)
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rates[0], betas=betas, eps=eps, fused=True)
        self.n_done = 0

    def run(self, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        """Train on inputs and targets, ``(B, L)`` int32 each, and wait for the device; the losses."""
        losses = []
        for inputs, targets in batches:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rates[min(self.n_done, len(self.rates) - 1)]
            x, y = (torch.from_numpy(a).to(self.device, non_blocking=True).long() for a in (inputs, targets))
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "mixed"):
                loss = self.forward(x, y)
            loss.backward()
            if self.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            self.n_done += 1
        found = [float(loss) for loss in losses]
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # the last update goes on behind its loss
        return found
