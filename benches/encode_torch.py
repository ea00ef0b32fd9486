#!/usr/bin/env python3
"""A plain ViT of ImageBind-huge's sizes in PyTorch, f32 on the CPU: pictures a second by batch.

    python encode_torch.py THREADS BATCH...

Patches by one matrix product, fused attention, exact GELU: what `benches/encode.rs` is measured against.
"""
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, BLOCKS, HEADS, PATCH, SIDE, OUT = 1280, 32, 16, 14, 224, 1024
ROUNDS = 2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        b, length, _ = x.shape
        qkv = self.qkv(self.norm_1(x)).view(b, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.out(mixed.transpose(1, 2).reshape(b, length, WIDTH))
        return x + self.mlp(self.norm_2(x))


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        patches = (SIDE // PATCH) ** 2
        self.patch = nn.Linear(3 * PATCH * PATCH, WIDTH, bias=False)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 1 + patches, WIDTH) * 0.02)
        self.before, self.after = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, OUT, bias=False)

    def forward(self, pictures):
        x = self.patch(F.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2))
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        x = self.before(x)
        for block in self.blocks:
            x = block(x)
        return F.normalize(self.head(self.after(x[:, 0])), dim=-1)


def main():
    threads, batches = int(sys.argv[1]), [int(b) for b in sys.argv[2:]]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Vision().eval()
    pictures = torch.randn(max(batches), 3, SIDE, SIDE)
    with torch.inference_mode():
        model(pictures[:1])
        for batch in batches:
            times = []
            for _ in range(ROUNDS):
                start = time.perf_counter()
                model(pictures[:batch])
                times.append(time.perf_counter() - start)
            print(f"batch {batch} pictures/s {batch / min(times):.4f}")


if __name__ == "__main__":
    main()
