#!/usr/bin/env python3
"""An iLLaMA in PyTorch: pictures a second, forward alone and as a step of training.

    python illama_torch.py THREADS SIDE PATCH BATCH ROUNDS

In f32 on the CPU; with VISCACHE_BENCH_DEVICE=cuda on a card, products in bf16.

The tiny size: one product for queries, keys and values, turns of neighbouring components, a mask times the softmax, SwiGLU. What
`benches/illama.rs` is measured against.
"""
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

DEVICE = os.environ.get("VISCACHE_BENCH_DEVICE", "cpu")
WIDTH, DEPTH, HEADS, HIDDEN, CLASSES = 192, 12, 3, 512, 1000


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = Norm(), Norm()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc3 = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.fc2 = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x, cos, sin, mask):
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)

        def turned(x):
            even, odd = x[..., 0::2], x[..., 1::2]
            return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

        weights = (turned(q) * (WIDTH // HEADS) ** -0.5 @ turned(k).transpose(-1, -2)).softmax(-1) * mask
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(b, n, WIDTH))
        y = self.norm2(x)
        return x + self.fc2(F.silu(self.fc1(y)) * self.fc3(y))


class Illama(nn.Module):
    def __init__(self, side, patch):
        super().__init__()
        n = (side // patch) ** 2 + 1
        self.patch = nn.Conv2d(3, WIDTH, patch, patch)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, n, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.head = Norm(), nn.Linear(WIDTH, CLASSES)
        half = WIDTH // HEADS // 2
        angles = torch.outer(torch.arange(n), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("mask", torch.ones(n, n).tril() * 0.5 + 0.5)

    def forward(self, pictures):
        x = self.patch(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([x, self.cls.expand(len(x), -1, -1)], 1) + self.positions
        for block in self.blocks:
            x = block(x, self.cos, self.sin, self.mask)
        return self.head(self.norm(x[:, -1]))


def main():
    threads, side, patch, batch, rounds = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Illama(side, patch).to(DEVICE)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pictures = torch.randn(batch, 3, side, side)
    targets = torch.full((batch, CLASSES), 1 / CLASSES, device=DEVICE)
    halves = torch.autocast("cuda", torch.bfloat16, enabled=DEVICE == "cuda")

    def forward():
        with torch.inference_mode(), halves:
            model(pictures.to(DEVICE)).float().cpu()

    def step():
        optimiser.zero_grad()
        with halves:
            loss = F.cross_entropy(model(pictures.to(DEVICE)), targets)
        loss.backward()
        optimiser.step()
        loss.item()

    for name, work in [("forward", forward), ("step", step)]:
        work()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        print(f"{name} {batch / sorted(times)[len(times) // 2]:.4f}")


if __name__ == "__main__":
    main()
