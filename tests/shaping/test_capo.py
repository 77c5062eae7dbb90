"""CAPO's closed form against the matrices that it stands for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_care.config import CapoConfig
from verl_care.shaping import capo


@pytest.mark.parametrize("seed", range(4))
def test_the_closed_form_equals_the_matrices(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    hidden = torch.randn(4, generator=generator, dtype=torch.float64)
    advantage, eta, action = 1.7 if seed % 2 else -0.9, 0.03, seed
    pi = (weights @ hidden).softmax(0)

    # The formulas of the paper, with vocabulary-sized matrices.
    v = torch.nn.functional.one_hot(torch.tensor(action), 6).double() - pi
    gradient = advantage * torch.outer(v, hidden)
    step = gradient
    u = step @ hidden
    fisher_matrix = torch.diag(pi) - torch.outer(pi, pi)
    m_f = 0.5 * eta**2 * (v @ u) ** 2
    m_h = eta * (gradient * step).sum() + 0.5 * eta**2 * advantage * ((v @ u) ** 2 - u @ fisher_matrix @ u)

    out = capo.predict_step(
        torch.tensor(advantage, dtype=torch.float64),
        pi[action],
        (pi**2).sum(),
        (pi**3).sum(),
        learning_rate=eta,
        hidden_norm_squared=float(hidden @ hidden),
    )
    assert float(out.policy_shift) == pytest.approx(float(m_f), rel=1e-10)
    assert float(out.objective_change) == pytest.approx(float(m_h), rel=1e-10)


def test_the_gradient_is_that_of_the_policy_gradient():
    """g = A (e_a - pi) h' is what autograd gives for A log pi_a, so that the norms above are those of training."""
    torch.manual_seed(1)
    weights = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(3, dtype=torch.float64)
    log_pi = (weights @ hidden).log_softmax(0)
    (2.5 * log_pi[2]).backward()
    pi = log_pi.detach().exp()
    out = capo.predict_step(
        torch.tensor(2.5, dtype=torch.float64),
        pi[2],
        (pi**2).sum(),
        (pi**3).sum(),
        learning_rate=1e-9,
        hidden_norm_squared=float(hidden @ hidden),
    )
    # To first order the objective moves by eta ||g||^2.
    assert float(out.objective_change) / 1e-9 == pytest.approx(float(weights.grad.square().sum()), rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-6, 6), min_size=2, max_size=9), st.data())
def test_the_bound_holds_and_is_reached_with_one_other_token(logits, data):
    pi = torch.tensor(logits, dtype=torch.float64).softmax(0)
    action = data.draw(st.integers(0, len(logits) - 1))
    bound = float(capo.bound_sum_pi_cubed(pi[action], (pi**2).sum()))
    exact = float((pi**3).sum())
    assert bound >= exact - 1e-12
    if len(logits) == 2:
        assert bound == pytest.approx(exact, abs=1e-9)


def test_thresholds_are_strict_symmetric_and_off_at_zero():
    step = capo.PredictedStep(torch.tensor([0.5, 1.0, 0.1, 0.1]), torch.tensor([0.0, 0.0, -2.0, 1.9]))

    def accepted(fisher, hessian):
        config = CapoConfig(fisher_threshold=fisher, hessian_threshold=hessian)
        return capo.accept_tokens(step, config).tolist()

    assert accepted(1.0, 2.0) == [True, False, False, True]
    assert accepted(0.0, 2.0) == [True, True, False, True]
    assert accepted(1.0, 0.0) == [True, False, True, True]
    assert all(accepted(0.0, 0.0))


def test_sure_tokens_are_accepted_and_surprising_ones_are_not():
    prob = torch.tensor([0.999, 0.01])
    squared = torch.tensor([0.998, 0.5])
    step = capo.predict_step(
        torch.ones(2),
        prob,
        squared,
        capo.bound_sum_pi_cubed(prob, squared),
        learning_rate=1e-3,
        hidden_norm_squared=100.0,
    )
    assert capo.accept_tokens(step, CapoConfig()).tolist() == [True, False]
