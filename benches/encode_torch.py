#!/usr/bin/env python3
"""A plain ViT of ImageBind-huge's sizes in PyTorch: pictures a second by batch, f32 on the CPU or bf16 on a card.

    python encode_torch.py THREADS BATCH... [--cuda [--compile]]

Patches by one matrix product, fused attention, exact GELU: what `benches/encode.rs` and `benches/gpu` are measured against.
"""
import argparse
import time

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, BLOCKS, HEADS, PATCH, SIDE, OUT = 1280, 32, 16, 14, 224, 1024
ROUNDS, CARD_ROUNDS = 2, 20


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


def seconds(work, cuda):
    """Of one run of `work`, by the clock of whatever does it."""
    if not cuda:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("threads", type=int)
    parser.add_argument("batches", type=int, nargs="+")
    parser.add_argument("--cuda", action="store_true", help="bf16 on the first card")
    parser.add_argument("--compile", action="store_true", help="torch.compile(mode='max-autotune')")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    place = {"device": "cuda", "dtype": torch.bfloat16} if options.cuda else {}
    model = Vision().eval().to(**place)
    if options.compile:
        model = torch.compile(model, mode="max-autotune")
    pictures = torch.randn(max(options.batches), 3, SIDE, SIDE).to(**place)
    with torch.inference_mode():
        for batch in options.batches:
            # The first runs compile, choose kernels and fill caches.
            for _ in range(3 if options.cuda else 1):
                model(pictures[:batch] if options.cuda else pictures[:1])
            rounds = CARD_ROUNDS if options.cuda else ROUNDS
            times = sorted(seconds(lambda: model(pictures[:batch]), options.cuda) for _ in range(rounds))
            taken = times[len(times) // 2] if options.cuda else times[0]
            print(f"batch {batch} pictures/s {batch / taken:.4f}")


if __name__ == "__main__":
    main()
