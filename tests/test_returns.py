"""GAE, KL estimators, whitening and rewards against brute force, enumeration, and numbers recorded from TRL 1.12."""

import math

import pytest
import torch

from rlhf_lab import returns

F64 = torch.float64


def t(*values):
    return torch.tensor(values, dtype=F64)


def random_batch(seed=0, shape=(4, 7)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=F64) for _ in range(2)]


MASK = torch.tensor(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0, 0],  # padded on the right
        [0, 0, 0, 1, 1, 1, 0],  # starts late
        [0, 0, 0, 0, 1, 0, 0],  # one token
    ]
)


def gae_by_double_sum(rewards, values, mask, gamma, lam):
    """A_t = sum over l of (gamma lam)^l delta_{t+l}, each reply cut out of its padding first."""
    advantages = torch.zeros_like(values)
    for row in range(len(values)):
        positions = mask[row].nonzero().flatten().tolist()
        r, v = rewards[row, positions].tolist(), [*values[row, positions].tolist(), 0.0]
        for i, position in enumerate(positions):
            advantages[row, position] = sum(
                (gamma * lam) ** (j - i) * (r[j] + gamma * v[j + 1] - v[j]) for j in range(i, len(r))
            )
    return advantages


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.99, 0.9), (0.9, 0.0), (0.9, 1.0), (1.0, 1.0)])
def test_gae_is_the_double_sum_of_its_definition(gamma, lam):
    rewards, values = random_batch()
    advantages, targets = returns.gae(rewards, values, MASK, gamma, lam)
    expected = gae_by_double_sum(rewards, values, MASK, gamma, lam)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(targets, (expected + values) * MASK, rtol=0, atol=1e-12)


def test_gae_by_hand():
    rewards, values, mask = t([0.0, 0.0, 1.0, 9.0]), t([0.5, 0.5, 0.5, 9.0]), torch.tensor([[1, 1, 1, 0]])
    # deltas 0, 0, 0.5; a discount of 0.5 a step
    advantages, targets = returns.gae(rewards, values, mask, gamma=1.0, lam=0.5)
    assert advantages.tolist() == [[0.125, 0.25, 0.5, 0.0]]
    assert targets.tolist() == [[0.625, 0.75, 1.0, 0.0]]


def test_gae_with_lambda_0_is_the_td_error():
    rewards, values, mask = t([0.1, -0.2, 1.0]), t([0.5, 0.3, -0.4]), torch.ones(1, 3)
    advantages, _ = returns.gae(rewards, values, mask, gamma=0.9, lam=0.0)
    td_error = [0.1 + 0.9 * 0.3 - 0.5, -0.2 + 0.9 * -0.4 - 0.3, 1.0 + 0.4]
    assert advantages[0].tolist() == pytest.approx(td_error)


def test_gae_with_lambda_1_is_the_discounted_return_minus_the_value():
    rewards, values, mask = t([0.1, -0.2, 1.0]), t([0.5, 0.3, -0.4]), torch.ones(1, 3)
    advantages, targets = returns.gae(rewards, values, mask, gamma=0.9, lam=1.0)
    discounted = [0.1 - 0.9 * 0.2 + 0.81, -0.2 + 0.9, 1.0]
    assert targets[0].tolist() == pytest.approx(discounted)
    assert advantages[0].tolist() == pytest.approx([g - v for g, v in zip(discounted, [0.5, 0.3, -0.4], strict=True)])


def test_a_perfect_value_leaves_no_advantage():
    rewards, mask = random_batch()[0], MASK
    exact_values = returns.gae(rewards, torch.zeros_like(rewards), mask, gamma=0.9, lam=1.0)[1]
    advantages, targets = returns.gae(rewards, exact_values, mask, gamma=0.9, lam=0.7)
    torch.testing.assert_close(advantages, torch.zeros_like(advantages), rtol=0, atol=1e-12)
    torch.testing.assert_close(targets, exact_values, rtol=0, atol=1e-12)


def test_gae_of_a_reply_does_not_depend_on_where_its_padding_is():
    rewards, values = (x[:, :4] for x in random_batch())
    whole = returns.gae(rewards, values, torch.ones(4, 4), 0.99, 0.95)[0]
    for left, right in [(0, 3), (3, 0), (2, 2)]:
        padded = [torch.nn.functional.pad(x, (left, right), value=math.nan) for x in (rewards, values)]
        mask = torch.nn.functional.pad(torch.ones(4, 4), (left, right))
        advantages, targets = returns.gae(*padded, mask, 0.99, 0.95)
        assert torch.equal(advantages[:, left : left + 4], whole)
        assert not advantages[mask == 0].any() and not targets[mask == 0].any()


def test_gae_steps_over_masked_tokens_inside_a_reply():
    """A tool's output between two turns: no action of the policy, no step of the episode."""
    rewards, values = t([0.1, 7.0, 7.0, 1.0]), t([0.5, 7.0, 7.0, 0.3])
    gapped, _ = returns.gae(rewards, values, torch.tensor([[1, 0, 0, 1]]), 0.9, 0.8)
    joined, _ = returns.gae(t([0.1, 1.0]), t([0.5, 0.3]), torch.ones(1, 2), 0.9, 0.8)
    assert gapped[0, [0, 3]].tolist() == joined[0].tolist()


def test_gae_gives_targets_without_gradient_and_in_fp32_from_half():
    rewards, values = (x.to(torch.bfloat16) for x in random_batch())
    advantages, targets = returns.gae(rewards, values.requires_grad_(), MASK, 1.0, 0.95)
    assert advantages.dtype == targets.dtype == torch.float32
    assert not advantages.requires_grad and not targets.requires_grad


# What lines 763-798 of trl/experimental/ppo/ppo_trainer.py of TRL 1.12.0, executed as they stand, gave for these
# arrays: kl_coef 0.1, gamma 0.99, lam 0.95, replies of 3, 2 and 5 tokens in 5 places, the first two ended by EOS.
LOGPROBS = t([-1.0, -0.5, -2.0, -0.3, -1.5], [-0.7, -1.1, -0.2, -0.9, -3.0], [-2.0, -0.1, -0.4, -0.6, -0.8])
REF_LOGPROBS = t([-1.2, -0.9, -1.5, -0.3, -1.0], [-0.5, -1.6, -0.1, -1.0, -2.0], [-2.5, -0.3, -0.2, -0.7, -0.9])
VALUES = t([0.5, 0.2, -0.1, 0.3, 0.9], [0.1, 0.4, 0.6, 0.8, -0.2], [-0.3, 0.0, 0.3, 0.7, 0.2])
SCORES = t(1.0, -0.5, 2.0)
TOKENS = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])  # ~padding_mask
TOKENS_P1 = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])  # ~padding_mask_p1
TRL_1_12 = {
    "k1": {
        "rewards": t([-0.02, -0.04, 0.05, 1, 0], [0.02, -0.05, -0.5, 0, 0], [-0.05, -0.02, 0.02, -0.01, 1.99]),
        "advantages": t(
            [0.33689707, 0.70058168, 1.10535, 0.7, 0.0],
            [-0.52156228, -0.89055, -1.1, 0.0, 0.0],
            [1.85041215, 1.70166098, 1.51479105, 1.171495, 1.79],
        ),
        "returns": t(
            [0.83689707, 0.90058167, 1.00535, 1.0, 0.0],
            [-0.42156228, -0.49055, -0.5, 0.0, 0.0],
            [1.55041215, 1.70166098, 1.81479105, 1.871495, 1.99],
        ),
        "whitened": t(
            [-0.55760214, -0.18137326, 0.2373564, 0.0, 0.0],
            [-1.44567161, -1.82738652, 0.0, 0.0, 0.0],
            [1.00811736, 0.85423544, 0.66091996, 0.30578289, 0.94562147],
        ),
    },
    "k3": {
        "rewards": t(
            [-0.00187308, -0.007032, -0.01487213, 1.0, 0.0],
            [-0.00214028, -0.01065307, -0.5, 0.0, 0.0],
            [-0.01065307, -0.00187308, -0.00214028, -0.00048374, 1.99951626],
        ),
        "advantages": t(
            [0.32864838, 0.67253743, 1.04047787, 0.7, 0.0],
            [-0.50669676, -0.85120307, -1.1, 0.0, 0.0],
            [1.90258579, 1.71529916, 1.51001833, 1.1899613, 1.79951626],
        ),
        "returns": t(
            [0.82864838, 0.87253743, 0.94047787, 1.0, 0.0],
            [-0.40669676, -0.45120307, -0.5, 0.0, 0.0],
            [1.60258579, 1.71529916, 1.81001833, 1.8899613, 1.99951626],
        ),
        "whitened": t(
            [-0.57168354, -0.21518707, 0.16624253, 0.0, 0.0],
            [-1.43765349, -1.79478984, 0.0, 0.0, 0.0],
            [1.05995642, 0.86580362, 0.65299693, 0.32120621, 0.95310823],
        ),
    },
}


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_way_from_scores_to_whitened_advantages_is_that_of_trl_1_12(kind):
    """TRL lets the episode run one step past EOS and puts the score there; the step has no action, so its KL is 0."""
    filled = [x.masked_fill(TOKENS == 0, 1.0) for x in (LOGPROBS, REF_LOGPROBS)]
    rewards = returns.per_token_rewards(SCORES, *filled, TOKENS_P1, kl_coef=0.1, kind=kind)
    advantages, targets = returns.gae(rewards, VALUES, TOKENS_P1, gamma=0.99, lam=0.95)
    whitened = returns.whiten(advantages, TOKENS)
    for name, ours in {"rewards": rewards, "advantages": advantages, "returns": targets, "whitened": whitened}.items():
        torch.testing.assert_close(ours, TRL_1_12[kind][name], rtol=0, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_rewards_sum_to_the_regularised_objective_and_the_score_stands_on_the_last_token():
    rewards = returns.per_token_rewards(SCORES, LOGPROBS, REF_LOGPROBS, TOKENS, kl_coef=0.1)
    log_ratio = ((LOGPROBS - REF_LOGPROBS) * TOKENS).sum(dim=1)
    torch.testing.assert_close(rewards.sum(dim=1), SCORES - 0.1 * log_ratio)
    without_kl = returns.per_token_rewards(SCORES, LOGPROBS, REF_LOGPROBS, TOKENS, kl_coef=0.0)
    assert without_kl.tolist() == [[0, 0, 1, 0, 0], [0, -0.5, 0, 0, 0], [0, 0, 0, 0, 2]]


def test_rewards_do_not_read_what_is_masked_and_find_the_last_token_of_a_late_reply():
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1]])
    logps = torch.zeros(2, 4).masked_fill(mask == 0, math.nan)
    rewards = returns.per_token_rewards(torch.tensor([3.0, 4.0]), logps, torch.zeros(2, 4), mask, kl_coef=0.1)
    assert rewards.tolist() == [[0, 0, 3, 0], [0, 0, 0, 4]]


def test_rewards_refuse_an_empty_reply_and_scores_of_another_shape():
    with pytest.raises(ValueError, match="row 1 of mask has no unmasked token"):
        returns.per_token_rewards(
            torch.ones(2), torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor([[1, 0], [0, 0]]), 0.1
        )
    with pytest.raises(ValueError, match=r"scores must have shape \(2,\), one a reply, got \(2, 1\)"):
        returns.per_token_rewards(torch.ones(2, 1), torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 2), 0.1)


# A world of one token out of five, where every expectation is a sum.
POLICY_LOGITS = t(0.2, -1.0, 1.5, 0.0, -0.3)
REF_PROBS = torch.softmax(t(1.0, 0.1, -0.5, 0.3, 0.0), -1)


def exact_kl(p, q):
    return (p * (p / q).log()).sum()


def test_k1_and_k3_are_unbiased_k2_is_not_and_k2_and_k3_are_never_negative():
    p = torch.softmax(POLICY_LOGITS, -1)
    estimates = {kind: returns.kl_estimate(p.log(), REF_PROBS.log(), kind) for kind in returns.KL_KINDS}
    expectation = {kind: (p * estimate).sum().item() for kind, estimate in estimates.items()}
    truth = exact_kl(p, REF_PROBS).item()
    assert expectation["k1"] == pytest.approx(truth, abs=1e-14)
    assert expectation["k3"] == pytest.approx(truth, abs=1e-14)
    assert abs(expectation["k2"] - truth) > 0.01
    assert estimates["k1"].min() < 0 <= min(estimates["k2"].min(), estimates["k3"].min())


def test_k3_varies_less_than_k1_near_the_reference():
    p = torch.softmax(REF_PROBS.log() + 0.1 * POLICY_LOGITS, -1)
    variance = {}
    for kind in ("k1", "k3"):
        x = returns.kl_estimate(p.log(), REF_PROBS.log(), kind)
        variance[kind] = (p * x.square()).sum() - (p * x).sum().square()
    assert variance["k3"] < variance["k1"] / 100


def test_k3_keeps_its_digits_near_zero():
    k1 = torch.tensor([1e-3], dtype=torch.float32)
    assert returns.kl_estimate(k1, torch.zeros(1), "k3").item() == pytest.approx(4.998334e-7, rel=1e-3)


def test_which_estimator_has_the_gradient_of_the_kl_as_a_reward_and_which_as_a_loss():
    logits = POLICY_LOGITS.clone().requires_grad_()

    def gradient(f):
        return torch.autograd.grad(f(torch.log_softmax(logits, -1)), logits)[0]

    forward = gradient(lambda logp: exact_kl(logp.exp(), REF_PROBS))
    backward = gradient(lambda logp: exact_kl(REF_PROBS, logp.exp()))
    p = torch.softmax(POLICY_LOGITS, -1)

    def as_reward(kind):
        cost = returns.kl_estimate(p.log(), REF_PROBS.log(), kind)
        return gradient(lambda logp: (p * logp * cost).sum())

    def as_loss(kind):
        return gradient(lambda logp: (p * returns.kl_estimate(logp, REF_PROBS.log(), kind)).sum())

    torch.testing.assert_close(as_reward("k1"), forward)
    assert (as_reward("k3") - forward).abs().max() > 0.05
    torch.testing.assert_close(as_loss("k2"), forward)
    torch.testing.assert_close(as_loss("k1"), torch.zeros(5, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(as_loss("k3"), backward)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="kind must be one of k1, k2, k3, got 'k4'"):
        returns.kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_whitening_by_hand():
    x, mask = t([1.0, 2.0, 99.0], [6.0, math.nan, 99.0]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    # 1, 2, 6: mean 3, unbiased variance 7
    root = math.sqrt(7)
    assert returns.whiten(x, mask).flatten().tolist() == pytest.approx([-2 / root, -1 / root, 0, 3 / root, 0, 0])
    kept = returns.whiten(x, mask, shift_mean=False).flatten().tolist()
    assert kept == pytest.approx([3 - 2 / root, 3 - 1 / root, 0, 3 + 3 / root, 0, 0])


def test_whitening_is_that_of_trl_1_12():
    """masked_whiten of TRL 1.12.0, run on these; TRL leaves numbers under the mask, which it fills with 0 later."""
    x, mask = t([1.0, 2.0, 4.0, 9.0], [0.0, -3.0, 5.0, 7.0]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    shifted = [0.07726674087096382, 0.463600445225783, 1.2362678539354215, -0.3090669634838554, -1.4680680765483127]
    kept = [0.8772667408709639, 1.263600445225783, 2.0362678539354215, 0.49093303651614467, -0.6680680765483127]
    assert returns.whiten(x, mask)[mask == 1].tolist() == pytest.approx(shifted, abs=1e-12)
    assert returns.whiten(x, mask, shift_mean=False)[mask == 1].tolist() == pytest.approx(kept, abs=1e-12)


def test_a_constant_added_to_every_entry_is_gone_after_whitening():
    x, _ = random_batch()
    torch.testing.assert_close(returns.whiten(x + 100, MASK), returns.whiten(x, MASK), rtol=0, atol=1e-10)


def test_whitening_one_entry_is_refused():
    with pytest.raises(ValueError, match="at least 2 unmasked entries, got 1"):
        returns.whiten(torch.ones(1, 3), torch.tensor([[0, 1, 0]]))


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"rewards \(2, 3\), values \(2, 4\), mask \(2, 4\)"):
        returns.gae(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 4), 1.0, 0.95)


def test_the_adaptive_controller_moves_as_ziegler_says():
    controller = returns.AdaptiveKLController(init_kl_coef=0.2, target=6.0, horizon=10_000)
    controller.update(current_kl=6.0, n_steps=1000)
    assert controller.value == 0.2
    controller.update(current_kl=6.6, n_steps=1000)  # error 0.1, a tenth of the horizon: their K_beta = 0.1
    assert controller.value == pytest.approx(0.2 * 1.01)
    controller.update(current_kl=600.0, n_steps=1000)  # clipped to 0.2
    assert controller.value == pytest.approx(0.2 * 1.01 * 1.02)
    controller.update(current_kl=-3.0, n_steps=1000)
    assert controller.value == pytest.approx(0.2 * 1.01 * 1.02 * 0.98)


def test_the_adaptive_controller_brings_the_kl_to_its_target():
    """A policy whose KL is 2 / coefficient, as that of pi* is for small KL, settles where 2 / value = 5."""
    controller = returns.AdaptiveKLController(init_kl_coef=5.0, target=5.0, horizon=1000)
    for _ in range(500):
        controller.update(2 / controller.value, n_steps=100)
    assert controller.value == pytest.approx(0.4, rel=1e-3)


def test_the_fixed_controller_stays_and_bad_settings_are_refused():
    controller = returns.FixedKLController(0.05)
    controller.update(100.0, 64)
    assert controller.value == 0.05
    with pytest.raises(ValueError, match="target must be > 0, got 0"):
        returns.AdaptiveKLController(0.1, target=0, horizon=100)
    with pytest.raises(ValueError, match="current_kl is NaN"):
        returns.AdaptiveKLController(0.1, target=6, horizon=100).update(math.nan, 10)
