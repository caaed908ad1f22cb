"""The peer of the benchmarks: a llama as one would write it in PyTorch, under ``torch.compile``.

The shapes of ``model=llama`` (tied embeddings, RMSNorm, rotary positions, grouped queries, SwiGLU), fused AdamW,
clipping, and autocast to bfloat16 for ``precision="mixed"``.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int, seq_len: int):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.d_head = n_heads, n_kv_heads, d_model // n_heads
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.k = nn.Linear(d_model, n_kv_heads * self.d_head, bias=False)
        self.v = nn.Linear(d_model, n_kv_heads * self.d_head, bias=False)
        self.o = nn.Linear(d_model, d_model, bias=False)
        angles = torch.outer(torch.arange(seq_len), 10000 ** (-torch.arange(0, self.d_head, 2) / self.d_head))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, L, _ = x.shape
        q, k, v = (
            project(x).view(B, L, n, self.d_head).transpose(1, 2)
            for project, n in ((self.q, self.n_heads), (self.k, self.n_kv_heads), (self.v, self.n_kv_heads))
        )
        q, k = (rotate(t, self.cos.to(t.dtype), self.sin.to(t.dtype)) for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.n_kv_heads != self.n_heads)
        return self.o(y.transpose(1, 2).reshape(B, L, -1))


class Block(nn.Module):
    def __init__(self, d_model: int, d_ff: int, *heads_and_length: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        self.attention = Attention(d_model, *heads_and_length)
        self.gate, self.up = nn.Linear(d_model, d_ff, bias=False), nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm_1(x))
        h = self.norm_2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, *, vocab_size, d_model, n_layers, n_heads, n_kv_heads, d_ff, seq_len):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        blocks = [Block(d_model, d_ff, n_heads, n_kv_heads, seq_len) for _ in range(n_layers)]
        self.blocks, self.norm = nn.ModuleList(blocks), nn.RMSNorm(d_model)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Token ids ``(B, L)`` and their targets; the mean cross-entropy in nats."""
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def training(
    *, batch_size: int, precision: str = "mixed", mode: str = "default", compile: bool = True, **shape: Any
) -> tuple[nn.Module, Callable[[int], float]]:
    """A model and ``run(n)``, which trains it for n steps on random tokens, waits for the device and returns the last
    loss.

    Args:
        precision: "mixed" or "fp32" (with TF32 products on a GPU, as MLX's are).
        mode: of ``torch.compile``; "reduce-overhead" records CUDA graphs.
        shape: of `Llama`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    model = Llama(**shape).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    forward: Any = torch.compile(model, mode=mode) if compile else model
    tokens = [
        torch.randint(0, shape["vocab_size"], (batch_size, shape["seq_len"] + 1), device=device) for _ in range(4)
    ]

    def run(n: int) -> float:
        for i in range(n):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "mixed"):
                loss = forward(tokens[i % 4][:, :-1], tokens[i % 4][:, 1:])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return model, run
