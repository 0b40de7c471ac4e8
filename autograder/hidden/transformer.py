"""Hidden cases of chapter 07."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autograder.checks.transformer import (
    ASSIGNMENT,
    DECODER_LAYERS,
    ENCODER_LAYERS,
    DecoderBlock,
    FeedForward,
    LayerNorm,
    RMSNorm,
    Transformer,
    TransformerBlock,
    block_shapes,
    expect_feed_forward,
    expect_layer_norm,
    expect_rms_norm,
    label_smoothed_cross_entropy,
    loaded,
    padded,
    random_padding,
    right_block,
    right_decoder_block,
    right_smoothing,
    sentences,
    smoothing_inputs,
    transformer,
)
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect, fail
from autograder.engine.handle import Handle
from rnn2gpt.attention import causal_mask

STEPS = 100  # to learn 20 pairs; a right model needs 4 to 50, depending on how it starts

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@LayerNorm.hidden("loud and faint positions", hint="Features of 1e-3 and of 1e6 must both work.")
def _(student: Handle, rng: Rng) -> None:
    loudness = torch.tensor([1e-3, 1.0, 1e6], dtype=torch.float64)[:, None]
    expect_layer_norm(student, rng, loudness * rng.normal(2, 3, 7))


@RMSNorm.hidden("loud and faint positions", hint="Features of 1e-4 and of 1e6 must both work.")
def _(student: Handle, rng: Rng) -> None:
    loudness = torch.tensor([1e-4, 1.0, 1e6], dtype=torch.float64)[:, None]
    expect_rms_norm(student, rng, loudness * rng.normal(2, 3, 7))


@FeedForward.hidden("the approximated GELU, no bias", hint="Activation and bias are independent.")
def _(student: Handle, rng: Rng) -> None:
    expect_feed_forward(student, rng, "gelu_tanh", bias=False)


@TransformerBlock.hidden(
    "post-norm under a mask of one matrix for each row",
    hint="A mask of shape (B, 1, T, T) must work, with norm_first=False too.",
)
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(6, 2, 7, norm_first=False, activation="gelu_tanh")
    weights = loaded(module, rng, block_shapes(6, 7, ENCODER_LAYERS))
    x, mask = rng.normal(3, 5, 6), random_padding(rng, 3, 5) & causal_mask(5)
    right = right_block(weights, 2, False, x, mask, "gelu_tanh")
    expect(module(x, mask), "the block's output").close_to(right)


@TransformerBlock.hidden(
    "a loud stream", hint="Features in the thousands must give finite numbers."
)
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(6, 2, 7)
    weights = loaded(module, rng, block_shapes(6, 7, ENCODER_LAYERS))
    x = 5000 * rng.normal(2, 5, 6)
    expect(module(x), "the block's output").close_to(right_block(weights, 2, True, x))


@DecoderBlock.hidden(
    "post-norm under both masks", hint="Both masks must work with norm_first=False too."
)
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(6, 2, 7, norm_first=False, activation="gelu_tanh")
    weights = loaded(module, rng, block_shapes(6, 7, DECODER_LAYERS))
    masks = causal_mask(5), random_padding(rng, 3, 7)
    inputs = rng.normal(3, 5, 6), rng.normal(3, 7, 6), *masks
    right = right_decoder_block(weights, 2, False, inputs, "gelu_tanh")
    expect(module(*inputs), "the block's output").close_to(right)


@Transformer.hidden(
    "extra padding in a batch that has some", hint="Any amount of padding may follow a source."
)
def _(student: Handle, rng: Rng) -> None:
    module, (source, target) = transformer(student, rng, pad_id=3), sentences(rng, pad_id=3)
    source[0, 2:] = 3
    right = module(source, target)
    expect(module(padded(source, 4, 3), target), "the logits with padding").close_to(right)


@Transformer.hidden(
    "learns 20 pairs by heart",
    hint="Trained on 20 pairs with Adam, the model must learn them by heart.",
)
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(60, 9, 32, 2, 32, 1, 3, 0)
    source, target = rng.integers(1, 60, 20, 3), rng.integers(1, 9, 20, 1)
    start = torch.ones_like(target)  # one word to write, so that the source alone can tell it
    weights = module.train().parameters()
    flat = torch.nn.Parameter(torch.cat([weight.flatten() for weight in weights.values()]))
    optimizer = torch.optim.Adam([flat], lr=0.02, betas=(0.9, 0.98))

    def cotangent(logits: Tensor) -> Tensor:
        """The loss's gradient, taken here and pulled back through the student's model there."""
        wanted = F.one_hot(target, logits.shape[-1])
        return (logits.softmax(-1) - wanted) / target.numel()

    for _ in range(STEPS):
        pulled = module.vjp(source, start, cotangent=cotangent)
        right = (pulled.value.argmax(-1) == target).double().mean().item()
        loss = F.cross_entropy(pulled.value.flatten(0, 1), target.flatten()).item()
        if right > 0.9 and loss < 1:  # probabilities taken for logits stay above 1.37
            return
        gradients = [(pulled.parameters[name], weight) for name, weight in weights.items()]
        flat.grad = torch.cat([(0 * w if g is None else g).flatten() for g, w in gradients])
        optimizer.step()
        parts = flat.detach().split([weight.numel() for weight in weights.values()])
        pairs = zip(weights.items(), parts, strict=True)
        module.load({name: part.view_as(weight) for (name, weight), part in pairs})
    fail(f"after {STEPS} steps {right:.0%} of the pairs are learned, at a loss of {loss:.2f}.")


@label_smoothed_cross_entropy.hidden(
    "a batch without padding", hint="Targets may hold no padding at all."
)
def _(student: Handle, rng: Rng) -> None:
    logits, targets, smoothing, pad_id = smoothing_inputs(rng)
    targets = torch.where(targets == pad_id, 1, targets)
    right = right_smoothing(logits, targets, smoothing, pad_id)
    expect(student(logits, targets, smoothing, pad_id), "the loss").close_to(right)
