"""How long fine-tuning takes on a card, by arithmetic alone: multiply-accumulates over a share of the card's peak."""

from __future__ import annotations

from dataclasses import dataclass

from train.memory import StepPlan

#: The share of the peak that a training step is assumed to reach. Not measured on any of these cards.
ASSUMED_SHARE = 0.4
#: Images of the paper's training set: about 51,000 of Hypersim, 20,000 of Virtual KITTI, and its epochs.
PAPER_PICTURES, PAPER_EPOCHS = 71_000, 30


@dataclass(frozen=True)
class Card:
    """gib: memory. tflops: dense BF16 with float32 accumulation, as its maker's data sheet says."""

    name: str
    gib: int
    tflops: float


CARDS = (
    Card("RTX 3090", 24, 71),
    Card("RTX 4090", 24, 165),
    Card("RTX 5090", 32, 209),
    Card("H20", 96, 148),
    Card("L40S", 48, 362),
    Card("A100 80 GB", 80, 312),
    Card("H100 SXM", 80, 989),
)


def forward_macs(plan: StepPlan) -> int:
    """Multiply-accumulates of one picture's pass through the transformer's blocks, LoRA included.

    Per token and block 12 h^2 for the base's Linears and r (in + out) for each LoRA; attention takes 2 tokens^2 h.
    """
    h, rank = plan.size.hidden, plan.lora.rank
    double, single = plan.size.double_blocks, plan.size.single_blocks
    # q, k, v, projection: 2 h each; the MLP's two: 5 h each. A single block: q, k, v: 2 h, MLP 5 h, output 6 h
    lora = rank * h * (double * (4 * 2 + 2 * 5) + single * (3 * 2 + 5 + 6))
    blocks = double + single
    return plan.tokens * (blocks * 12 * h * h + lora) + blocks * 2 * plan.tokens**2 * h


def step_macs(plan: StepPlan) -> int:
    """Multiply-accumulates of a training step for one picture.

    The backward pass costs as much as the forward pass for frozen Linears (there is no gradient of their weights) and
    five halves of it in attention; with gradient checkpointing the forward pass is made twice.
    """
    attention = (plan.size.double_blocks + plan.size.single_blocks) * 2 * plan.tokens**2 * plan.size.hidden
    forward = forward_macs(plan)
    return forward * (2 if plan.gradient_checkpointing else 1) + (forward - attention) + attention * 5 // 2


def seconds_a_picture(plan: StepPlan, card: Card, share: float = ASSUMED_SHARE) -> float:
    """Estimated seconds of training for one picture."""
    return 2 * step_macs(plan) / (card.tflops * 1e12 * share)
