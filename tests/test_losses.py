"""Losses against hand-worked numbers, finite differences, the papers' claims, and TRL's own code.

With TRL on the tiny Llama, weights and all: test_losses_trl.py.
"""

import math
import tempfile
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from rlhf_lab import losses

F64 = torch.float64


def t(*values, grad=False):
    return torch.tensor(values, dtype=F64, requires_grad=grad)


def grad_of(loss, x):
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_token_logps_is_log_softmax_gathered_and_keeps_its_digits_in_half_precision(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 5, 1000, generator=generator) * 8).to(dtype)
    labels = torch.randint(1000, (3, 5), generator=generator)
    exact = logits.double().log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    ours = losses.token_logps(logits, labels)
    assert ours.dtype == (F64 if dtype == F64 else torch.float32)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 1e-2), (torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_token_logps_gradient_is_that_of_log_softmax(dtype, tolerance):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 50, generator=generator).to(dtype).requires_grad_()
    labels, weight = torch.randint(50, (2, 4), generator=generator), torch.randn(2, 4, generator=generator, dtype=F64)
    reference = logits.detach().double().requires_grad_()
    expected = grad_of((reference.log_softmax(-1).gather(-1, labels[..., None])[..., 0] * weight).sum(), reference)
    ours = grad_of((losses.token_logps(logits, labels) * weight).sum(), logits)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)


def test_token_logps_passes_finite_differences():
    logits = torch.randn(2, 3, 6, dtype=F64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert gradcheck(lambda x: losses.token_logps(x, torch.tensor([[0, 5, 2], [3, 3, 1]])), logits)


def test_sequence_logps_shifts_sums_and_leaves_the_prompt_out():
    # p(1) = 3/4 wherever it is asked for, so a reply of two tokens has (3/4)^2 whatever the prompt was.
    logits = torch.log(torch.tensor([0.25, 0.75])).repeat(1, 4, 1)
    input_ids, mask = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 1]])
    torch.testing.assert_close(losses.sequence_logps(logits, input_ids, mask), torch.tensor([2 * math.log(0.75)]))


def test_sequence_logps_scores_a_label_by_the_logits_before_it():
    logits = torch.full((1, 3, 3), -50.0)
    logits[0, 0, 2] = logits[0, 1, 1] = logits[0, 2, 0] = 50.0  # foretells 2, then 1; the last position says nothing
    mask = torch.tensor([[1, 1, 1]])
    assert losses.sequence_logps(logits, torch.tensor([[0, 2, 1]]), mask).item() == pytest.approx(0, abs=1e-6)
    assert losses.sequence_logps(logits, torch.tensor([[2, 1, 0]]), mask).item() < -150


def test_sequence_logps_does_not_read_labels_under_the_mask():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    labels = torch.tensor([[1, 2, 3, 4, 5], [6, 5, 4, 3, 2]])
    ignored = labels.masked_fill(mask == 0, -100)
    assert torch.equal(losses.sequence_logps(logits, labels, mask), losses.sequence_logps(logits, ignored, mask))


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"logits \(1, 4, 2\), labels \(1, 3\)"):
        losses.token_logps(torch.zeros(1, 4, 2), torch.zeros(1, 3, dtype=torch.long))


def test_masked_mean_and_variance_by_hand_with_nan_under_the_mask():
    x, mask = t([1.0, 2.0, math.nan], [6.0, math.inf, math.nan]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert losses.masked_mean(x, mask).item() == 3.0
    assert losses.masked_mean(x, mask, dim=1).tolist() == [1.5, 6.0]
    assert losses.masked_var(x, mask).item() == 7.0  # (4 + 1 + 9) / 2
    assert losses.masked_var(x, mask, unbiased=False).item() == pytest.approx(14 / 3)


def test_a_mean_over_nothing_is_refused():
    with pytest.raises(ValueError, match="the mask is 0 everywhere"):
        losses.masked_mean(torch.ones(2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="at least 2 unmasked"):
        losses.masked_var(torch.ones(2, 2), torch.tensor([[1, 0], [0, 0]]))


def test_sft_loss_of_a_model_that_knows_nothing_is_log_vocabulary():
    mask = torch.tensor([[0, 1, 1, 0]])
    assert losses.sft_loss(torch.zeros(1, 4, 32), torch.zeros(1, 4, dtype=torch.long), mask).item() == pytest.approx(
        math.log(32)
    )


def test_sft_loss_is_the_mean_over_tokens_not_over_replies():
    logits = torch.log(torch.tensor([0.2, 0.8])).repeat(2, 4, 1)
    labels, mask = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0]]), torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0]])
    by_hand = -(3 * math.log(0.8) + math.log(0.2)) / 4
    assert losses.sft_loss(logits, labels, mask).item() == pytest.approx(by_hand)


def test_reward_loss_is_finite_where_log_of_sigmoid_is_not():
    chosen = torch.tensor([-90.0], requires_grad=True)
    assert torch.isinf(-torch.log(torch.sigmoid(chosen)))
    loss = losses.reward_loss(chosen, torch.tensor([0.0]))
    assert loss.item() == 90.0
    assert grad_of(loss, chosen).item() == -1.0
    half = losses.reward_loss(torch.tensor([-20.0], dtype=torch.float16), torch.zeros(1, dtype=torch.float16))
    assert half.item() == 20.0


def test_reward_loss_by_hand_with_and_without_margin():
    chosen, rejected = t(math.log(3), 0.0), t(0.0, 0.0)  # P(chosen) = 3/4 and 1/2
    assert losses.reward_loss(chosen, rejected).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert losses.reward_loss(chosen, rejected, margin=t(math.log(3), 0.0)).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "advantage, gradients", [(1.0, [-0.5, -1.0, 0.0]), (-1.0, [0.0, 1.0, 1.5])], ids=["good", "bad"]
)
def test_ppo_gradient_in_the_three_regimes_of_both_signs(advantage, gradients):
    for ratio, expected in zip([0.5, 1.0, 1.5], gradients, strict=True):
        logps = t([math.log(ratio)], grad=True)
        loss = losses.ppo_policy_loss(logps, t([0.0]), t([advantage]), torch.ones(1, 1), 0.2)
        assert grad_of(loss, logps).item() == pytest.approx(expected)


def ppo_batch():
    generator = torch.Generator().manual_seed(4)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
    logps, old, adv = (torch.randn(3, 4, generator=generator, dtype=F64) * 0.4 for _ in range(3))
    return logps.requires_grad_(), old, adv, mask


def test_ppo_losses_pass_finite_differences():
    logps, old, adv, mask = ppo_batch()
    assert gradcheck(lambda x: losses.ppo_policy_loss(x, old, adv, mask, 0.2), logps)
    assert gradcheck(lambda x: losses.ppo_value_loss(x, old, adv, mask, 0.2), logps)


def test_ppo_losses_do_not_read_what_is_masked():
    logps, old, adv, mask = ppo_batch()
    for loss in (losses.ppo_policy_loss, losses.ppo_value_loss):
        clean = loss(logps, old, adv, mask, 0.2)
        poisoned_old, poisoned_adv = old.masked_fill(mask == 0, -1e4), adv.masked_fill(mask == 0, math.nan)
        poisoned = loss(logps, poisoned_old, poisoned_adv, mask, 0.2)
        assert torch.equal(clean, poisoned)
        assert torch.equal(grad_of(clean, logps), grad_of(poisoned, logps))


def test_micro_batches_weighted_by_their_tokens_give_the_gradient_of_the_whole():
    logps, old, adv, mask = ppo_batch()
    whole = grad_of(losses.ppo_policy_loss(logps, old, adv, mask, 0.2), logps)
    parts = sum(
        losses.ppo_policy_loss(logps[i : i + 1], old[i : i + 1], adv[i : i + 1], mask[i : i + 1], 0.2) * mask[i].sum()
        for i in range(3)
    )
    torch.testing.assert_close(grad_of(parts / mask.sum(), logps), whole, rtol=0, atol=1e-15)


def test_ppo_value_loss_by_hand():
    values, old, returns = t([0.9, 0.3, 5.0]), t([0.5, 0.1, 0.0]), t([1.0, 0.0, 0.0])
    # first: clipped to 0.7, (0.7 - 1)^2 = 0.09 > 0.01; second: not clipped, 0.09; third is padding
    loss = losses.ppo_value_loss(values, old, returns, torch.tensor([[1, 1, 0]]), 0.2)
    assert loss.item() == pytest.approx(0.5 * 0.09)


def test_ppo_stats_before_the_first_update():
    logps, _, adv, mask = ppo_batch()
    stats = losses.ppo_policy_stats(logps, logps.detach(), adv, mask, 0.2)
    assert {k: v.item() for k, v in stats.items()} == {"clipfrac": 0.0, "approxkl": 0.0, "ratio": 1.0}


# What lines 829-854 of trl/experimental/ppo/ppo_trainer.py of TRL 1.12.0, executed as they stand on these
# arrays, gave for the losses, the clip fractions and the gradient of pg_loss + 0.1 * vf_loss.
TRL_1_12 = {
    "vpred": [[0.9, 0.0, -0.6, 0.0], [0.3, 1.2, 0.4, 0.7]],
    "mb_values": [[0.5, 0.2, -0.1, 0.0], [0.1, 0.4, 0.6, 0.8]],
    "mb_return": [[1.0, 0.5, -1.0, 0.0], [0.0, 2.0, 0.5, 0.1]],
    "mb_advantage": [[1.0, -0.5, 2.0, 0.0], [-1.0, 0.3, 0.8, -2.0]],
    "new_logprobs": [[-1.0, -0.5, -2.0, 1.0], [-0.7, -1.1, -0.2, -0.9]],
    "mb_logprobs": [[-1.2, -0.9, -1.5, 1.0], [-0.5, -1.6, -0.1, -1.0]],
    "pg_loss": 0.03972195488512537,
    "vf_loss": 0.23214285714285715,
    "pg_clipfrac": 2 / 7,
    "vf_clipfrac": 3 / 7,
    "grad_logprobs": [
        [0.0, 0.10655890697437645, -0.17329447420360955, 0.0],
        [0.11696153615399742, 0.0, -0.10340999063268108, 0.315763119450185],
    ],
    "grad_vpred": [
        [0.0, -0.0071428571428571435, 0.0, 0.0],
        [0.004285714285714286, 0.0, -0.0014285714285714284, 0.008571428571428572],
    ],
}


def test_ppo_losses_clip_fractions_and_gradients_are_those_of_trl_1_12():
    recorded = {k: torch.tensor(v, dtype=F64) for k, v in TRL_1_12.items()}
    logps, values = recorded["new_logprobs"].requires_grad_(), recorded["vpred"].requires_grad_()
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    policy = (logps, recorded["mb_logprobs"], recorded["mb_advantage"], mask, 0.2)
    value = (values, recorded["mb_values"], recorded["mb_return"], mask, 0.2)
    pg_loss, vf_loss = losses.ppo_policy_loss(*policy), losses.ppo_value_loss(*value)
    (pg_loss + 0.1 * vf_loss).backward()
    ours = {
        "pg_loss": pg_loss,
        "vf_loss": vf_loss,
        "pg_clipfrac": losses.ppo_policy_stats(*policy)["clipfrac"],
        "vf_clipfrac": losses.ppo_value_stats(*value)["clipfrac"],
        "grad_logprobs": logps.grad,
        "grad_vpred": values.grad,
    }
    for name, number in ours.items():
        torch.testing.assert_close(number, recorded[name], rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def dpo_batch(n=4, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [-20 * torch.rand(n, generator=generator, dtype=F64) - 1 for _ in range(4)]


def test_dpo_starts_at_log_2_and_pulls_chosen_up_and_rejected_down_alike():
    _, _, ref_chosen, ref_rejected = dpo_batch()
    chosen, rejected = ref_chosen.clone().requires_grad_(), ref_rejected.clone().requires_grad_()
    loss = losses.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.1)
    assert loss.item() == pytest.approx(math.log(2))
    up, down = torch.autograd.grad(loss, (chosen, rejected))
    torch.testing.assert_close(up, torch.full_like(up, -0.1 / 2 / 4))  # beta * sigmoid(0) / batch
    torch.testing.assert_close(down, -up)


def test_dpo_by_hand_and_its_reductions():
    batch = t(-1.0, -2.0), t(-3.0, -2.0), t(-2.0, -2.0), t(-2.0, -2.0)  # margins 2 and 0 before beta
    each = [-math.log(1 / (1 + math.exp(-0.5 * 2))), math.log(2)]
    assert losses.dpo_loss(*batch, beta=0.5, reduction="none").tolist() == pytest.approx(each)
    assert losses.dpo_loss(*batch, beta=0.5, reduction="sum").item() == pytest.approx(sum(each))
    assert losses.dpo_loss(*batch, beta=0.5).item() == pytest.approx(sum(each) / 2)
    with pytest.raises(ValueError, match='"mean", "sum" or "none"'):
        losses.dpo_loss(*batch, beta=0.5, reduction="average")


def test_dpo_loss_stays_finite_far_out():
    chosen = torch.tensor([-2000.0], requires_grad=True)
    loss = losses.dpo_loss(chosen, torch.zeros(1), torch.zeros(1), torch.zeros(1), beta=0.5)
    assert loss.item() == 1000.0
    assert grad_of(loss, chosen).item() == -0.5


def test_larger_beta_holds_closer_to_the_reference():
    """One comparison won with probability 0.8: the fitted log-ratio margin is log(0.8 / 0.2) / beta."""
    for beta in (0.1, 1.0):
        margin = t(math.log(4) / beta, grad=True)
        zero = t(0.0)
        won = losses.dpo_loss(margin, zero, zero, zero, beta)
        lost = losses.dpo_loss(zero, margin, zero, zero, beta)
        assert grad_of(0.8 * won + 0.2 * lost, margin).item() == pytest.approx(0, abs=1e-12)


def test_dpo_gradient_is_zero_at_the_exact_optimum_of_rlhf():
    """All pairs of 5 replies, labelled by Bradley-Terry on the true rewards: pi* is stationary, ref is not."""
    beta, rewards = 0.3, t(0.5, -1.0, 2.0, 0.0, 1.2)
    ref = torch.softmax(t(0.3, -0.4, 0.1, 0.9, -1.0), -1)
    p_beats = torch.sigmoid(rewards[:, None] - rewards[None, :])  # (5, 5)
    first, second = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")

    def gradient_at(logits):
        logps = logits.log_softmax(-1)
        each = losses.dpo_loss(logps[first], logps[second], ref.log()[first], ref.log()[second], beta, reduction="none")
        return grad_of((p_beats * each * (1 - torch.eye(5, dtype=F64))).sum(), logits)

    optimum = (ref.log() + rewards / beta).requires_grad_()
    assert gradient_at(optimum).abs().max() < 1e-12
    assert gradient_at(ref.log().requires_grad_()).abs().max() > 0.1


def test_implicit_rewards_recover_the_rewards_up_to_a_constant():
    rewards, ref = t(0.5, -1.0, 2.0), torch.softmax(t(0.1, 0.7, -0.2), -1)
    optimal = torch.softmax(ref.log() + rewards / 0.25, -1)
    implied = losses.implicit_rewards(optimal.log(), ref.log(), beta=0.25)
    torch.testing.assert_close(implied - implied.mean(), rewards - rewards.mean())


def test_cdpo_is_dpo_with_smoothed_labels_and_settles_at_their_log_odds():
    batch = dpo_batch()
    swapped = [batch[1], batch[0], batch[3], batch[2]]
    expected = 0.9 * losses.dpo_loss(*batch, beta=0.1) + 0.1 * losses.dpo_loss(*swapped, beta=0.1)
    torch.testing.assert_close(losses.cdpo_loss(*batch, beta=0.1, label_smoothing=0.1), expected)
    margin = t(math.log(9), grad=True)
    zero = t(0.0)
    assert grad_of(losses.cdpo_loss(margin, zero, zero, zero, 1.0, 0.1), margin).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("flip_rate", [0.0, 0.1, 0.3, 0.49])
def test_robust_dpo_is_unbiased_under_flips_exactly(flip_rate):
    batch = dpo_batch(16)
    swapped = [batch[1], batch[0], batch[3], batch[2]]
    kwargs = {"beta": 0.1, "label_smoothing": flip_rate, "reduction": "none"}
    expectation = (1 - flip_rate) * losses.robust_dpo_loss(*batch, **kwargs) + flip_rate * losses.robust_dpo_loss(
        *swapped, **kwargs
    )
    torch.testing.assert_close(expectation, losses.dpo_loss(*batch, beta=0.1, reduction="none"), rtol=1e-12, atol=1e-12)


def test_labels_that_say_nothing_are_refused():
    for loss in (losses.cdpo_loss, losses.robust_dpo_loss):
        with pytest.raises(ValueError, match=r"flip rate in \[0, 0.5\), got 0.5"):
            loss(*dpo_batch(), beta=0.1, label_smoothing=0.5)


def test_on_a_sure_preference_ipo_settles_where_dpo_goes_on_for_ever():
    tau, zero = 0.1, t(0.0)
    at_optimum, beyond = t(1 / (2 * tau), grad=True), t(50.0, grad=True)
    assert grad_of(losses.ipo_loss(at_optimum, zero, zero, zero, tau), at_optimum).item() == 0
    assert grad_of(losses.ipo_loss(beyond, zero, zero, zero, tau), beyond).item() > 0
    assert grad_of(losses.dpo_loss(beyond, zero, zero, zero, tau), beyond).item() < 0


def test_ipo_by_hand_on_sums_and_on_averages():
    batch = t(-4.0), t(-12.0), t(-8.0), t(-9.0)  # log-ratios +4 and -3
    assert losses.ipo_loss(*batch, 0.25).item() == (7 - 2) ** 2
    lengths = torch.tensor([4]), torch.tensor([6])  # averages +1 and -0.5
    assert losses.ipo_loss(*batch, 0.25, *lengths).item() == (1.5 - 2) ** 2
    with pytest.raises(ValueError, match="or neither"):
        losses.ipo_loss(*batch, 0.25, torch.tensor([4]))


def test_kto_by_hand_and_bounded_by_its_weight():
    policy, ref, desirable = t(-1.0, -1.0, 0.0), t(-3.0, -3.0, -500.0), torch.tensor([True, False, False])
    each = losses.kto_loss(policy, ref, desirable, kl=1.0, beta=0.5, undesirable_weight=2.0, reduction="none")
    gain = 1 / (1 + math.exp(-0.5))  # sigmoid(0.5 * (2 - 1))
    assert each.tolist() == pytest.approx([1 - gain, 2 * gain, 2.0])


def test_kto_reference_point_is_never_negative_and_carries_no_gradient():
    policy = t(-5.0, -7.0, grad=True)
    assert losses.kto_kl(policy, t(-4.0, -4.0)).item() == 0
    z0 = losses.kto_kl(policy, t(-8.0, -8.0))
    assert z0.item() == 2 and not z0.requires_grad


def test_orpo_by_hand():
    chosen, rejected = t(2 * math.log(0.8)), t(3 * math.log(0.5))  # mean probabilities a token 0.8 and 0.5
    lengths = torch.tensor([2]), torch.tensor([3])
    odds_ratio = -math.log(4 / (4 + 1))  # odds 4 against 1
    assert losses.orpo_odds_ratio_loss(chosen, rejected, *lengths).item() == pytest.approx(odds_ratio)
    assert losses.orpo_loss(chosen, rejected, *lengths, beta=0.1).item() == pytest.approx(
        -math.log(0.8) + 0.1 * odds_ratio
    )


@pytest.mark.parametrize("logp", [0.0, -1e-9, -0.6931, -50.0, -2000.0])
def test_orpo_has_a_finite_gradient_for_sure_and_for_hopeless_replies(logp):
    for dtype in (torch.float32, F64):
        chosen = torch.tensor([logp], dtype=dtype, requires_grad=True)
        loss = losses.orpo_loss(chosen, torch.tensor([-1.0], dtype=dtype), *[torch.ones(1, dtype=torch.long)] * 2, 0.1)
        assert torch.isfinite(loss) and torch.isfinite(grad_of(loss, chosen)).all()


def test_simpo_by_hand():
    chosen, rejected = t(-2.0), t(-9.0)  # -1 and -3 a token
    lengths = torch.tensor([2]), torch.tensor([3])
    loss = losses.simpo_loss(chosen, rejected, *lengths, beta=2.0, gamma=1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-(2 * 2 - 1))))


def test_a_reply_without_tokens_is_refused():
    with pytest.raises(ValueError, match="no tokens"):
        losses.simpo_loss(t(-2.0), t(-9.0), torch.tensor([2]), torch.tensor([0]), beta=2.0, gamma=1.0)


@pytest.mark.parametrize("beta", [0, -0.1])
def test_a_beta_that_is_not_positive_is_refused(beta):
    with pytest.raises(ValueError, match=f"beta must be > 0, got {beta}"):
        losses.dpo_loss(*dpo_batch(), beta=beta)


@pytest.mark.parametrize(
    "loss",
    [
        lambda *b: losses.dpo_loss(*b, beta=0.1),
        lambda *b: losses.cdpo_loss(*b, beta=0.1, label_smoothing=0.2),
        lambda *b: losses.robust_dpo_loss(*b, beta=0.1, label_smoothing=0.2),
        lambda *b: losses.ipo_loss(*b, tau=0.1),
        lambda *b: losses.kto_loss(b[0], b[2], torch.tensor([1, 0, 1]), kl=0.5, beta=0.1),
        lambda *b: losses.orpo_loss(b[0], b[1], *LENGTHS, beta=0.3),
        lambda *b: losses.simpo_loss(b[0], b[1], *LENGTHS, beta=2.0, gamma=0.5),
        lambda *b: losses.reward_loss(b[0], b[1]),
    ],
    ids=["dpo", "cdpo", "robust", "ipo", "kto", "orpo", "simpo", "reward"],
)
def test_preference_losses_pass_finite_differences(loss):
    chosen, rejected, ref_chosen, ref_rejected = dpo_batch(3)
    assert gradcheck(
        lambda c, r: loss(c, r, ref_chosen, ref_rejected), (chosen.requires_grad_(), rejected.requires_grad_())
    )


LENGTHS = torch.tensor([3, 5, 2]), torch.tensor([4, 2, 6])


@pytest.fixture(scope="module")
def dpo_trainer():
    """TRL's DPOTrainer on a random Llama of 5k parameters, with one batch of its own making."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL and transformers deprecate their own arguments
        from datasets import Dataset
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        from trl import DPOConfig, DPOTrainer

        words = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
        backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
        )
        config = LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
            initializer_range=0.5,
        )
        torch.manual_seed(0)
        model, ref_model = LlamaForCausalLM(config), LlamaForCausalLM(config)
        pairs = Dataset.from_dict(
            {"prompt": ["a b c", "d e"], "chosen": [" f g h i", " j"], "rejected": [" k l", " m n o"]}
        )
        with tempfile.TemporaryDirectory() as directory:
            args = DPOConfig(
                output_dir=directory,
                use_cpu=True,
                bf16=False,
                report_to=[],
                per_device_train_batch_size=2,
                gradient_checkpointing=False,
                beta=0.1,
                label_smoothing=0.1,
                disable_tqdm=True,
            )
            trainer = DPOTrainer(model, ref_model, args=args, train_dataset=pairs, processing_class=tokenizer)
            batch = next(iter(trainer.get_train_dataloader()))
            yield trainer, batch


def trl_loss(trainer, loss_type, model, inputs):
    trainer.loss_types = [loss_type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer._compute_loss(model, dict(inputs), return_outputs=False)


OURS = {
    "sigmoid": lambda b, lengths: losses.dpo_loss(*b, beta=0.1),
    "ipo": lambda b, lengths: losses.ipo_loss(*b, 0.1, *lengths),
    "robust": lambda b, lengths: losses.robust_dpo_loss(*b, beta=0.1, label_smoothing=0.1),
}


def test_sft_loss_is_that_of_trl_and_of_transformers(dpo_trainer):
    trainer, batch = dpo_trainer
    ids, attention_mask, mask = (batch[k].chunk(2)[0] for k in ("input_ids", "attention_mask", "completion_mask"))
    logits = trainer.model(ids, attention_mask=attention_mask).logits
    ours = losses.sft_loss(logits, ids, mask)
    torch.testing.assert_close(ours, trl_loss(trainer, "sft", trainer.model, batch), rtol=1e-5, atol=1e-6)
    by_transformers = trainer.model.loss_function(logits, ids.masked_fill(mask == 0, -100), vocab_size=32)
    torch.testing.assert_close(ours, by_transformers, rtol=1e-6, atol=1e-6)


def one_token_a_reply(logps, completion_mask):
    """A stand-in for a model: the log-prob of each whole reply stands on its first token."""
    per_token = F.pad(logps[:, None], (0, completion_mask.shape[1] - 2))
    zeros = torch.zeros_like(per_token)
    return lambda **_: SimpleNamespace(log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


@pytest.mark.parametrize("loss_type", OURS)
def test_dpo_losses_and_gradients_are_those_of_trl_to_the_last_digit(dpo_trainer, loss_type):
    trainer, _ = dpo_trainer
    chosen, rejected, ref_chosen, ref_rejected = dpo_batch(3)
    logps = torch.cat([chosen, rejected]).requires_grad_()
    lengths = torch.cat(LENGTHS)
    completion_mask = (torch.arange(8) >= 1) & (torch.arange(8) <= lengths[:, None])
    inputs = {
        "input_ids": torch.zeros(6, 8, dtype=torch.long),
        "attention_mask": torch.ones(6, 8),
        "completion_mask": completion_mask.long(),
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    trainer.precompute_ref_logps = True
    try:
        theirs = trl_loss(trainer, loss_type, one_token_a_reply(logps, completion_mask), inputs)
    finally:
        trainer.precompute_ref_logps = False
    ours = OURS[loss_type]((*logps.chunk(2), ref_chosen, ref_rejected), LENGTHS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad_of(ours, logps), grad_of(theirs, logps), rtol=0, atol=1e-12)


ONE_PROCESS = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x)


def test_reward_loss_is_that_of_trl():
    from collections import defaultdict

    from trl import RewardTrainer

    logits, margin = torch.randn(8, 1, dtype=F64, generator=torch.Generator().manual_seed(6)), t(0.1, 0.0, 0.5, 1.0)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=ONE_PROCESS,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )
    for extra in ({}, {"margin": margin}):
        theirs = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), dict(extra))
        ours = losses.reward_loss(*logits.squeeze(-1).chunk(2), **extra)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, -40.0], ids=["kl positive", "kl clamped to 0"])
def test_kto_loss_is_that_of_trl(shift):
    from collections import defaultdict

    from trl import KTOTrainer

    policy, ref, policy_kl, ref_kl = (x.requires_grad_() for x in dpo_batch(5, seed=7))
    policy_kl = policy_kl + 10 + shift
    desirable = torch.tensor([1, 0, 1, 1, 0])
    completion_mask = torch.ones(5, 6, dtype=torch.long)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=ONE_PROCESS,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _compute_kl_logps=lambda model, batch: policy_kl,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=0.1,
        desirable_weight=1.3,
        undesirable_weight=0.7,
    )
    inputs = {
        "input_ids": torch.zeros(5, 6, dtype=torch.long),
        "attention_mask": completion_mask,
        "completion_mask": completion_mask,
        "label": desirable.bool(),
        "ref_logps": ref,
        "ref_KL_logps": ref_kl,
    }
    theirs = KTOTrainer._compute_loss(trainer, one_token_a_reply(policy, completion_mask), inputs, False)
    kl = losses.kto_kl(policy_kl, ref_kl)
    ours = losses.kto_loss(policy, ref, desirable, kl, 0.1, desirable_weight=1.3, undesirable_weight=0.7)
    assert (kl > 0) == (shift == 0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad_of(ours, policy), grad_of(theirs, policy), rtol=0, atol=1e-12)
