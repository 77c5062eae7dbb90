"""CAPO: tokens whose next step would move policy or objective too far do not train. Pure.

Source: arXiv 2510.00819; luckeciano/stable-pg-llm ``grpo_entropy_trainer.py``. The method models one optimiser step of
the last layer: logits = W h, gradient g = A v h' with v = e_a - pi, step dW, u = dW h.

    policy shift       m_F = 1/2 eta^2 (v'u)^2
    objective change   m_H = eta <g, dW> + 1/2 eta^2 A [(v'u)^2 - u'Fu],   F = diag(pi) - pi pi'

Here dW is the gradient itself (the published code's SGD model), which leaves u = A ||h||^2 v, and with it everything in
terms of pi_a and of sums of powers of pi:

    ||v||^2 = 1 - 2 pi_a + S2,   v'Fv = pi_a - 2 pi_a^2 + S3 - (pi_a - S2)^2,   S2 = sum pi^2, S3 = sum pi^3

Left out, for what they would need: Adam's moments for each row of the last layer (a second copy of it, and lost on
resume), the norm of each token's own hidden state (one constant stands for it: a final RMSNorm keeps it nearly so), and
S3, which no pass gives and for which an upper bound stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verl_care.config import CapoConfig


@dataclass(frozen=True)
class PredictedStep:
    """What a step of the last layer on one token would change."""

    policy_shift: Tensor
    """m_F, second order of the KL divergence between the policies, any shape."""
    objective_change: Tensor
    """m_H, same shape."""


def bound_sum_pi_cubed(prob: Tensor, sum_pi_squared: Tensor) -> Tensor:
    """Largest sum of pi^3 that pi_a and sum pi^2 allow: what is left of sum pi^2 sits in one other token.

    Args:
        prob: probability of the token, any shape.
        sum_pi_squared: sum of squared probabilities over the vocabulary, same shape.
    """
    return prob**3 + (sum_pi_squared - prob**2).clamp(min=0) ** 1.5


def predict_step(
    advantage: Tensor,
    prob: Tensor,
    sum_pi_squared: Tensor,
    sum_pi_cubed: Tensor,
    *,
    learning_rate: float,
    hidden_norm_squared: float,
) -> PredictedStep:
    """Predicted effect of a gradient step of the last layer, token by token.

    Args:
        advantage: of each token, any shape.
        prob: probability pi_a of the token, same shape.
        sum_pi_squared: S2, same shape.
        sum_pi_cubed: S3, same shape.
        learning_rate: eta of the next step.
        hidden_norm_squared: ||h||^2 of the last hidden state.
    """
    v_squared = 1 - 2 * prob + sum_pi_squared
    v_f_v = prob - 2 * prob**2 + sum_pi_cubed - (prob - sum_pi_squared) ** 2
    curvature = (advantage * hidden_norm_squared) ** 2
    fisher = curvature * v_squared**2
    hessian = advantage * (fisher - curvature * v_f_v)
    gradient = advantage**2 * hidden_norm_squared * v_squared
    return PredictedStep(
        policy_shift=0.5 * learning_rate**2 * fisher,
        objective_change=learning_rate * gradient + 0.5 * learning_rate**2 * hessian,
    )


def accept_tokens(step: PredictedStep, config: CapoConfig) -> Tensor:
    """m_F < fisher_threshold and -hessian_threshold < m_H < hessian_threshold; a threshold of 0 is off.

    Returns:
        Bool, the shape of the prediction.
    """
    accepted = torch.ones_like(step.policy_shift, dtype=torch.bool)
    if config.fisher_threshold:
        accepted &= step.policy_shift < config.fisher_threshold
    if config.hessian_threshold:
        accepted &= step.objective_change.abs() < config.hessian_threshold
    return accepted
