"""A small convolutional network for 8x8 pictures, trained with nothing but NumPy.

    [N,1,8,8] → conv 3x3 (16) → ReLU → conv 3x3 (32) → ReLU → max pool 2x2
              → dense 64 → ReLU → dense 10

Convolutions keep the size (one pixel of zeros around). All arrays are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Weights = dict[str, Floats]

SHAPES: dict[str, tuple[int, ...]] = {
    "conv1": (16, 1, 3, 3),
    "conv2": (32, 16, 3, 3),
    "dense1": (512, 64),
    "dense2": (64, 10),
}
"""Kernels are [out, in, 3, 3], dense weights [in, out]; ``<name>_bias`` is [out]."""


def train(images: Floats, labels: NDArray[np.int64], *, seed: int = 0, epochs: int = 40) -> Weights:
    """Fit to ``images`` [N,1,8,8] (0 to 1) and ``labels`` [N] with Adam and cross-entropy.

    Each picture is moved by up to one pixel at random, which is worth about as much as more
    handwriting; the learning rate falls to zero along half a cosine.
    """
    rng = np.random.RandomState(seed)
    weights = _initial(rng)
    moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in weights.items()}
    batch_size, step = 32, 0
    steps = epochs * (len(images) // batch_size)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            step += 1
            gradients = _gradients(weights, _shifted(images[rows], rng), labels[rows], rng)
            rate = 2e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
            for name, gradient in gradients.items():
                mean, square = moments[name]
                mean += 0.1 * (gradient - mean)
                square += 0.001 * (gradient**2 - square)
                scale = np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                weights[name] -= np.float32(rate * scale) * mean / (np.sqrt(square) + 1e-8)
    return weights


def _initial(rng: np.random.RandomState) -> Weights:
    weights: Weights = {}
    for name, shape in SHAPES.items():
        inputs, outputs = (9 * shape[1], shape[0]) if len(shape) == 4 else shape
        values = rng.standard_normal(shape) * np.sqrt(2 / inputs)
        weights[name] = values.astype(np.float32)
        weights[f"{name}_bias"] = np.zeros(outputs, np.float32)
    return weights


def _shifted(images: Floats, rng: np.random.RandomState) -> Floats:
    """Each picture moved by -1, 0 or 1 pixel in both directions, zeros coming in."""
    padded = np.pad(images[:, 0], ((0, 0), (1, 1), (1, 1)))
    down, right = rng.randint(0, 3, (2, len(images), 1, 1))
    row = np.arange(len(images))[:, None, None]
    grid = np.arange(8)
    moved: Floats = padded[row, grid[None, :, None] + down, grid[None, None, :] + right]
    return moved[:, None]


def _windows(x: Floats) -> Floats:
    """[N,C,8,8] → [N,8,8,C*9]: what a 3x3 kernel sees at each place."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))
    result: Floats = windows.transpose(0, 2, 3, 1, 4, 5).reshape(len(x), 8, 8, -1)
    return result


def _conv(windows: Floats, kernel: Floats) -> Floats:
    """[N,8,8,C*9] by [F,C,3,3] → [N,F,8,8]."""
    result: Floats = (windows @ kernel.reshape(len(kernel), -1).T).transpose(0, 3, 1, 2)
    return result


def _conv_gradients(windows: Floats, upstream: Floats) -> tuple[Floats, Floats]:
    """Gradients of the kernel (flat, [F,C*9]) and of the bias [F]; ``upstream`` is [N,F,8,8]."""
    flat = upstream.transpose(1, 0, 2, 3).reshape(upstream.shape[1], -1)
    return flat @ windows.reshape(-1, windows.shape[-1]), flat.sum(axis=1)


def _gradients(
    w: Weights, x: Floats, labels: NDArray[np.int64], rng: np.random.RandomState
) -> dict[str, NDArray[Any]]:
    """Gradient of the mean cross-entropy over a batch, for each weight."""
    n = len(x)
    # Forward
    seen1 = _windows(x)
    hidden1 = np.maximum(_conv(seen1, w["conv1"]) + w["conv1_bias"][:, None, None], 0)
    seen2 = _windows(hidden1)
    hidden2 = np.maximum(_conv(seen2, w["conv2"]) + w["conv2_bias"][:, None, None], 0)
    blocks = hidden2.reshape(n, 32, 4, 2, 4, 2)
    pooled = blocks.max(axis=(3, 5))
    flat = pooled.reshape(n, -1)
    # Drop a quarter of the inputs of each dense layer, so that no few of them decide alone.
    keep1 = (rng.random_sample(flat.shape) > 0.25).astype(np.float32) / np.float32(0.75)
    dense = np.maximum((flat * keep1) @ w["dense1"] + w["dense1_bias"], 0)
    keep2 = (rng.random_sample(dense.shape) > 0.25).astype(np.float32) / np.float32(0.75)
    logits = (dense * keep2) @ w["dense2"] + w["dense2_bias"]
    # Backward
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    d_logits = exp / exp.sum(axis=1, keepdims=True)
    d_logits[np.arange(n), labels] -= 1
    d_logits /= n
    d_dense = (d_logits @ w["dense2"].T) * keep2 * (dense > 0)
    d_pooled = ((d_dense @ w["dense1"].T) * keep1).reshape(pooled.shape)
    at_most = (blocks == pooled[:, :, :, None, :, None]) & (blocks > 0)
    d_hidden2 = (at_most * d_pooled[:, :, :, None, :, None]).reshape(hidden2.shape)
    # The way back through a convolution is a convolution with the kernel turned round.
    turned = w["conv2"].transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    d_hidden1 = _conv(_windows(d_hidden2), turned) * (hidden1 > 0)
    kernel1, bias1 = _conv_gradients(seen1, d_hidden1)
    kernel2, bias2 = _conv_gradients(seen2, d_hidden2)
    return {
        "conv1": kernel1.reshape(SHAPES["conv1"]),
        "conv1_bias": bias1,
        "conv2": kernel2.reshape(SHAPES["conv2"]),
        "conv2_bias": bias2,
        "dense1": (flat * keep1).T @ d_dense,
        "dense1_bias": d_dense.sum(axis=0),
        "dense2": (dense * keep2).T @ d_logits,
        "dense2_bias": d_logits.sum(axis=0),
    }
