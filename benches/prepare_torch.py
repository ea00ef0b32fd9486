#!/usr/bin/env python3
"""Front ends as ImageBind's loaders have them, in torchaudio, torchvision and Pillow, one thread: seconds for all files.

    python prepare_torch.py sounds|pictures FILE...

What `benches/prepare.rs` is measured against. Sounds: decode, resample, three clips, Kaldi filter bank, normalise. Pictures: decode,
bicubic resize, centre crop, normalise. The first pass is not counted.
"""
import sys
import time
import wave

import numpy
import torch
import torchaudio
from PIL import Image
from torchvision import transforms

torch.set_num_threads(1)
ROUNDS = 5
PICTURE = transforms.Compose([
    transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
    transforms.CenterCrop(224),
    transforms.ToTensor(),
    transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
])


def picture(path):
    with open(path, "rb") as file:
        return PICTURE(Image.open(file).convert("RGB"))


def load(path):
    # torchaudio.load needs torchcodec by now; 16-bit WAV files are read quicker like this than by it.
    with wave.open(path, "rb") as file:
        rate, channels = file.getframerate(), file.getnchannels()
        samples = numpy.frombuffer(file.readframes(file.getnframes()), "<i2").astype(numpy.float32) / 32768
    return torch.from_numpy(samples.reshape(-1, channels).T.copy()), rate


def sound(path):
    waveform, rate = load(path)
    if rate != 16000:
        waveform = torchaudio.functional.resample(waveform, orig_freq=rate, new_freq=16000)
    slack = max(waveform.shape[1] / 16000 - 2, 0)
    clips = []
    for clip in range(3):
        start = int(slack * clip / 2 * 16000)
        part = waveform[:, start:start + 32000]
        part -= part.mean()
        mel = torchaudio.compliance.kaldi.fbank(
            part, htk_compat=True, sample_frequency=16000, use_energy=False, window_type="hanning", num_mel_bins=128,
            dither=0.0, frame_length=25, frame_shift=10).transpose(0, 1)
        mel = torch.nn.functional.pad(mel, (0, max(204 - mel.shape[1], 0)))[:, :204]
        clips.append(((mel + 4.268) / 9.138).unsqueeze(0))
    return torch.stack(clips)


def main():
    work, files = {"sounds": sound, "pictures": picture}[sys.argv[1]], sys.argv[2:]
    with torch.inference_mode():
        times = []
        for _ in range(ROUNDS + 1):
            start = time.process_time()
            for path in files:
                work(path)
            times.append(time.process_time() - start)
    print(f"seconds {sorted(times[1:])[ROUNDS // 2]:.6f}")


if __name__ == "__main__":
    main()
