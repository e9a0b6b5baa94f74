"""Answers as learners write them, none by calling the package: right ones, and wrong ones with the mistake's name.

RIGHT[name]: other ways to the same result. WRONG[name]: (name of the mistake or None, answer); None is for wrong
answers that the graders do not know by name. The article's own listings are among them.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from rlhf_lab.helpdesk import gold_breakdown

RIGHT, WRONG = {}, {}


def right(name):
    return lambda function: RIGHT.setdefault(name, []).append(function)


def wrong(name, mistake=None):
    return lambda function: WRONG.setdefault(name, []).append((mistake, function))


# --- lesson 00 ----------------------------------------------------------------------------------------------------


@right("gold_from_terms")
def _(message, reply):
    total = 0
    for _attribute, value in gold_breakdown(message, reply).items():
        total += value
    return total


@wrong("gold_from_terms", "helpfulness alone")
def _(message, reply):
    return gold_breakdown(message, reply)["helpfulness"]


@wrong("gold_from_terms")
def _(message, reply):
    return sum(value for attribute, value in gold_breakdown(message, reply).items() if attribute != "brevity")


# --- lesson 01 ----------------------------------------------------------------------------------------------------


@right("imitators_gold")
def _(counts, gold):
    demonstrations = [gold[y] for y, count in enumerate(counts) for _ in range(count)]
    return sum(demonstrations) / len(demonstrations)


@right("imitators_gold")
def _(counts, gold):
    return torch.tensor(counts).double().div(sum(counts)) @ torch.tensor(gold).double()


@wrong("imitators_gold", "the best reply")
def _(counts, gold):
    best = -math.inf
    for value in gold:
        best = value if value > best else best
    return best


@wrong("imitators_gold")
def _(counts, gold):
    return float(np.median([gold[y] for y, count in enumerate(counts) for _ in range(count)]))


wrong("what_a_label_says")("because")


@right("pairs_from_ranking")
def _(ranking):
    pairs = []
    for i in range(len(ranking)):
        for j in range(i + 1, len(ranking)):
            pairs.insert(0, [ranking[i], ranking[j]])
    return pairs


@wrong("pairs_from_ranking", "neighbours only")
def _(ranking):
    return [(ranking[i], ranking[i + 1]) for i in range(len(ranking) - 1)]


@wrong("pairs_from_ranking")
def _(ranking):
    return [(ranking[0], ranking[-1])]


@right("longer_reply_wins")
def _(chosen_lengths, rejected_lengths):
    signs = np.sign(np.array(chosen_lengths) - np.array(rejected_lengths))
    return (1 + signs).mean() / 2


@wrong("longer_reply_wins", "ties lost")
def _(chosen_lengths, rejected_lengths):
    correct = 0
    for c, r in zip(chosen_lengths, rejected_lengths, strict=True):
        if c > r:
            correct += 1
    return correct / len(chosen_lengths)


@wrong("longer_reply_wins")
def _(chosen_lengths, rejected_lengths):
    return 100 * np.mean((1 + np.sign(np.subtract(chosen_lengths, rejected_lengths))) / 2)


@right("kappa")
def _(a, b):
    labels = sorted({*a, *b})
    table = np.zeros((len(labels), len(labels)))
    for x, y in zip(a, b, strict=True):
        table[labels.index(x), labels.index(y)] += 1 / len(a)
    observed, by_chance = np.trace(table), table.sum(0) @ table.sum(1)
    return (observed - by_chance) / (1 - by_chance)


@wrong("kappa", "raw agreement")
def _(a, b):
    return np.mean(np.array(a) == np.array(b))


@wrong("kappa")
def _(a, b):
    return 2 * np.mean(np.array(a) == np.array(b)) - 1


# --- lesson 02 ----------------------------------------------------------------------------------------------------


@right("bradley_terry")
def _(reward_a, reward_b):
    return 0.5 * (1 + math.tanh((reward_a - reward_b) / 2))


@right("bradley_terry")
def _(reward_a, reward_b):
    return torch.tensor([reward_a, reward_b], dtype=torch.float64).softmax(0)[0]


@wrong("bradley_terry", "exp overflows")  # Python's exp raises where numpy's gives inf
def _(reward_a, reward_b):
    return math.exp(reward_a) / (math.exp(reward_a) + math.exp(reward_b))


@wrong("bradley_terry", "the sign of the difference")
def _(reward_a, reward_b):
    return 1 / (1 + math.exp(reward_a - reward_b))


@wrong("bradley_terry")
def _(reward_a, reward_b):
    return math.tanh(reward_a - reward_b)


@right("elo_probability")
def _(rating_a, rating_b):
    strength_a, strength_b = 10 ** (rating_a / 400), 10 ** (rating_b / 400)
    return strength_a / (strength_a + strength_b)


@wrong("elo_probability", "ratings in place of strengths")  # the article's
def _(rating_a, rating_b):
    return rating_a / (rating_a + rating_b)


@wrong("elo_probability")
def _(rating_a, rating_b):
    return 1 / (1 + 10 ** ((rating_b - rating_a) / 200))


wrong("elo_points_per_reward")(200.0)


@right("reward_loss")
def _(chosen, rejected):
    return F.softplus(rejected - chosen).mean()


@right("reward_loss")
def _(chosen, rejected):
    total = 0
    for c, r in zip(chosen, rejected, strict=True):
        total = total - torch.logsumexp(torch.stack([c, r]), 0) + c
    return -total / len(chosen)


@wrong("reward_loss", "missing logsigmoid")  # the article's
def _(chosen, rejected):
    loss = -torch.log(torch.sigmoid(chosen - rejected)).mean()
    return loss


@wrong("reward_loss")
def _(chosen, rejected):
    return torch.clamp(1 - (chosen - rejected), min=0).mean()


@right("centre_by_prompt")
def _(rewards, prompts):
    groups = {}
    for r, p in zip(rewards, prompts, strict=True):
        groups.setdefault(p, []).append(r)
    return [r - sum(groups[p]) / len(groups[p]) for r, p in zip(rewards, prompts, strict=True)]


@wrong("centre_by_prompt", "one constant for all prompts")
def _(rewards, prompts):
    mean = sum(rewards) / len(rewards)
    return [r - mean for r in rewards]


@wrong("centre_by_prompt")
def _(rewards, prompts):
    return [
        r - min(x for x, q in zip(rewards, prompts, strict=True) if q == p)
        for r, p in zip(rewards, prompts, strict=True)
    ]


@right("fit_rewards")
def _(n_items, comparisons):
    rewards = [0.0] * n_items
    for _step in range(1500):
        gradient = [0.0] * n_items
        for winner, loser in comparisons:
            surprise = 1 / (1 + math.exp(rewards[winner] - rewards[loser]))
            gradient[winner] += surprise
            gradient[loser] -= surprise
        rewards = [r + 0.1 * g for r, g in zip(rewards, gradient, strict=True)]
    return [r - sum(rewards) / n_items for r in rewards]


@right("fit_rewards")  # Zermelo's iteration on strengths
def _(n_items, comparisons):
    strength, wins = np.ones(n_items), np.bincount([w for w, _ in comparisons], minlength=n_items)
    for _step in range(500):
        denominator = np.zeros(n_items)
        for pair in comparisons:
            denominator[list(pair)] += 1 / strength[list(pair)].sum()
        strength = wins / denominator
        strength /= np.exp(np.log(strength).mean())
    return np.log(strength)


@wrong("fit_rewards", "the loser first")
def _(n_items, comparisons):
    rewards = np.zeros(n_items)
    for _step in range(1500):
        gradient = np.zeros(n_items)
        for loser, winner in comparisons:
            surprise = 1 / (1 + np.exp(rewards[winner] - rewards[loser]))
            gradient[winner] += surprise
            gradient[loser] -= surprise
        rewards += 0.1 * gradient
    return rewards - rewards.mean()


@wrong("fit_rewards")
def _(n_items, comparisons):
    return np.bincount([w for w, _ in comparisons], minlength=n_items)


@right("plackett_luce")
def _(rewards):
    probability, left = 1.0, [math.exp(r) for r in rewards]
    while left:
        probability *= left[0] / sum(left)
        left = left[1:]
    return math.log(probability)


@wrong("plackett_luce", "placed items stay in the race")
def _(rewards):
    return torch.tensor(rewards, dtype=torch.float64).log_softmax(0).sum()


@wrong("plackett_luce")
def _(rewards):
    return sum(rewards)


wrong("cycle")(2 / 3)


# --- lesson 03 ----------------------------------------------------------------------------------------------------


@right("masked_mean")
def _(x, mask):
    return x[mask.bool()].mean()


@right("masked_mean")
def _(x, mask):
    total, count = 0, 0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            if mask[i, j]:
                total, count = total + x[i, j], count + 1
    return total / count


@wrong("masked_mean", "0 times nan")
def _(x, mask):
    return torch.sum(mask * x) / torch.sum(mask)


@wrong("masked_mean", "no gradient")
def _(x, mask):
    return x.detach().numpy()[mask.numpy() == 1].mean()


@wrong("masked_mean")
def _(x, mask):
    return x[mask.bool()].median()


@right("whiten")
def _(x, mask):
    x, mask = x.numpy(), mask.numpy().astype(bool)
    return np.where(mask, (x - x[mask].mean()) / x[mask].std(ddof=1), 0)


@wrong("whiten", "the biased variance")  # numpy's default
def _(x, mask):
    x, mask = x.numpy(), mask.numpy().astype(bool)
    return np.where(mask, (x - x[mask].mean()) / x[mask].std(), 0)


@wrong("whiten", "changed in place")
def _(x, mask):
    x -= x[mask.bool()].mean()
    x /= x[mask.bool()].std()
    return x.masked_fill(mask == 0, 0.0)


@wrong("whiten")
def _(x, mask):
    rows = [(r - r[m == 1].mean()) * (m == 1) for r, m in zip(x, mask, strict=True)]
    return torch.stack(rows)


@right("probability_ratio")
def _(logps, old_logps):
    with torch.no_grad():
        old = torch.exp(old_logps)
    return torch.exp(logps) / old


@wrong("probability_ratio", "missing detach")
def _(logps, old_logps):
    return torch.exp(logps) / torch.exp(old_logps)


@wrong("probability_ratio", "upside down")
def _(logps, old_logps):
    return torch.exp(old_logps.detach()) / torch.exp(logps)


@wrong("probability_ratio")
def _(logps, old_logps):
    return torch.exp(logps - old_logps.detach()).clamp(0.8, 1.2)


right("clip_gradients")(torch.tensor([[-0.5, -1, 0], [0, 1, 1.5]]))
wrong("clip_gradients")([[-0.5, -1, 0], [0.5, 1, 0]])
wrong("what_the_clip_does")("clips")


@right("ppo_loss")
def _(logps, old_logps, advantages, mask, clip_range):
    ratio = torch.exp(logps - old_logps)
    losses = torch.max(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - clip_range, 1 + clip_range))
    return (losses * mask).sum() / mask.sum()


@right("ppo_loss")
def _(logps, old_logps, advantages, mask, clip_range):
    total, count = 0, 0
    for i, j in torch.nonzero(mask).tolist():
        ratio, advantage = (logps[i, j] - old_logps[i, j]).exp(), advantages[i, j].item()
        limit = 1 + clip_range if advantage > 0 else 1 - clip_range
        beyond = ratio > limit if advantage > 0 else ratio < limit
        total = total - (limit if beyond else ratio) * advantage
        count += 1
    return total / count


@wrong("ppo_loss", "padding averaged in")  # the article's, which knows no mask
def _(old_logprobs, new_logprobs, advantages, mask, epsilon):
    old_logprobs, new_logprobs = new_logprobs, old_logprobs  # our order of arguments
    ratios = torch.exp(new_logprobs - old_logprobs)
    surr1 = ratios * advantages
    surr2 = torch.clamp(ratios, 1 - epsilon, 1 + epsilon) * advantages
    return -torch.min(surr1, surr2).mean()


@wrong("ppo_loss", "max for min")
def _(logps, old_logps, advantages, mask, clip_range):
    ratio = torch.exp(logps - old_logps)
    losses = torch.min(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - clip_range, 1 + clip_range))
    return (losses * mask).sum() / mask.sum()


@wrong("ppo_loss", "no gradient")
def _(logps, old_logps, advantages, mask, clip_range):
    ratio = torch.exp(logps - old_logps).detach()
    losses = torch.max(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - clip_range, 1 + clip_range))
    return (losses * mask).sum() / mask.sum()


@wrong("ppo_loss")  # two mistakes at once
def _(logps, old_logps, advantages, mask, clip_range):
    ratio = torch.exp(logps - old_logps)
    return torch.min(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages).mean()


@right("value_loss")
def _(values, old_values, returns, mask, clip_range):
    low, high = old_values - clip_range, old_values + clip_range
    clipped = torch.minimum(torch.maximum(values, low), high)
    plain, held = (values - returns) ** 2, (clipped - returns) ** 2
    return torch.where(plain > held, plain, held)[mask == 1].mean() / 2


@wrong("value_loss", "one half forgotten")
def _(values, old_values, returns, mask, clip_range):
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)[mask == 1].mean()


@wrong("value_loss")
def _(values, old_values, returns, mask, clip_range):
    return F.huber_loss(values[mask == 1], returns[mask == 1])


@right("kl_estimate")
def _(logps, ref_logps, kind):
    d = logps.numpy() - ref_logps.numpy()
    return {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[kind]


@wrong("kl_estimate", "k3 with the ratio upside down")
def _(logps, ref_logps, kind):
    d = logps - ref_logps
    return {"k1": d, "k2": d**2 / 2, "k3": d.exp() - 1 - d}[kind]


@wrong("kl_estimate")
def _(logps, ref_logps, kind):
    d = logps - ref_logps
    return {"k1": d, "k2": d**2, "k3": d.exp() - 1 - d}[kind]


@right("kl_rewards")
def _(scores, logps, ref_logps, mask, kl_coef):
    rewards = -kl_coef * (logps - ref_logps).detach() * mask
    for row, score in enumerate(scores):
        rewards[row, int(mask[row].sum()) - 1] += score
    return rewards


@right("kl_rewards")
def _(scores, logps, ref_logps, mask, kl_coef):
    rewards = -kl_coef * (logps.numpy() - ref_logps.numpy()) * mask.numpy()
    rewards[np.arange(len(scores)), mask.numpy().sum(1) - 1] += scores.numpy()
    return rewards


@wrong("kl_rewards", "F.kl_div on log-probs")  # the article's
def _(scores, logps, ref_logps, mask, kl_coef):
    kl_penalty = torch.nn.functional.kl_div(logps, ref_logps)
    return scores - kl_coef * kl_penalty


@wrong("kl_rewards", "missing detach")
def _(scores, logps, ref_logps, mask, kl_coef):
    last = F.one_hot(mask.sum(1) - 1, mask.shape[1])
    return -kl_coef * (logps - ref_logps) * mask + scores[:, None] * last


@wrong("kl_rewards")
def _(scores, logps, ref_logps, mask, kl_coef):
    rewards = -kl_coef * (logps - ref_logps).detach() * mask
    rewards[:, 0] += scores
    return rewards


@right("gae")
def _(rewards, values, mask, gamma, lam):
    advantages = np.zeros(rewards.shape)
    rewards, values, mask = rewards.numpy(), values.numpy(), mask.numpy()
    for row in range(len(rewards)):
        n = int(mask[row].sum())
        ahead, value_ahead = 0.0, 0.0
        for t in range(n - 1, -1, -1):
            ahead = rewards[row, t] + gamma * value_ahead - values[row, t] + gamma * lam * ahead
            value_ahead = values[row, t]
            advantages[row, t] = ahead
    return advantages, np.where(mask == 1, advantages + values, 0)


@right("gae")
@torch.no_grad()
def _(rewards, values, mask, gamma, lam):
    values, rewards = values * mask, rewards * mask
    delta = rewards + gamma * F.pad(values[:, 1:], (0, 1)) - values
    steps = torch.arange(delta.shape[1])
    weights = ((gamma * lam) ** (steps[None] - steps[:, None]).clamp(min=0).double()).triu()
    advantages = delta @ weights.T * mask
    return [advantages, advantages + values]


@wrong("gae", "lambda forgotten")
def _(rewards, values, mask, gamma, lam):
    rewards, values = rewards.detach() * mask, values.detach() * mask
    returns, ahead = torch.zeros_like(rewards), 0
    for t in reversed(range(rewards.shape[1])):
        ahead = rewards[:, t] + gamma * ahead
        returns[:, t] = ahead
    return (returns - values) * mask, returns * mask


@wrong("gae", "a value read from the padding")
def _(rewards, values, mask, gamma, lam):
    with torch.no_grad():
        advantages, ahead, value_ahead = torch.zeros_like(rewards), 0, 0
        for t in reversed(range(rewards.shape[1])):
            ahead = rewards[:, t] + gamma * value_ahead - values[:, t] + gamma * lam * ahead
            value_ahead = values[:, t]
            advantages[:, t] = ahead
        return advantages * mask, (advantages + values) * mask


@wrong("gae")
def _(rewards, values, mask, gamma, lam):
    return (rewards - values) * mask, rewards * mask


# --- lesson 04 ----------------------------------------------------------------------------------------------------


@right("optimal_policy")
def _(ref_probs, rewards, beta):
    return (torch.tensor(ref_probs).log() + torch.tensor(rewards) / beta).softmax(-1)


@right("optimal_policy")
def _(ref_probs, rewards, beta):
    best = max(rewards)
    weights = [p * math.exp((r - best) / beta) for p, r in zip(ref_probs, rewards, strict=True)]
    return [w / sum(weights) for w in weights]


@wrong("optimal_policy", "beta turned round")
def _(ref_probs, rewards, beta):
    return (torch.tensor(ref_probs).log() + torch.tensor(rewards) * beta).softmax(-1)


@wrong("optimal_policy", "exp overflows")
def _(ref_probs, rewards, beta):
    weights = []
    for p, r in zip(ref_probs, rewards, strict=True):
        weights.append(p * math.exp(r / beta))
    return np.array(weights) / sum(weights)


@wrong("optimal_policy")
def _(ref_probs, rewards, beta):
    return ((torch.tensor(ref_probs).log() + torch.tensor(rewards)) / beta).softmax(-1)


@right("log_partition")
def _(ref_probs, rewards, beta):
    exponents = [math.log(p) + r / beta for p, r in zip(ref_probs, rewards, strict=True)]
    largest = max(exponents)
    return largest + math.log(sum(math.exp(x - largest) for x in exponents))


@wrong("log_partition", "the reference forgotten")
def _(ref_probs, rewards, beta):
    return torch.logsumexp(torch.tensor(rewards) / beta, 0)


@wrong("log_partition")
def _(ref_probs, rewards, beta):
    return -torch.logsumexp(torch.tensor(ref_probs).log() + torch.tensor(rewards) / beta, 0)


@right("implied_reward")
def _(policy, ref, beta):
    return [beta * math.log(p / q) for p, q in zip(policy, ref, strict=True)]


@wrong("implied_reward", "reference over policy")
def _(policy, ref, beta):
    return beta * (np.log(ref) - np.log(policy))


@wrong("implied_reward")
def _(policy, ref, beta):
    return beta * policy * np.log(policy / ref)


@right("reply_log_ratio")
def _(policy_logits, ref_logits, input_ids, mask):
    totals = []
    for row in range(len(input_ids)):
        total = 0
        for t in range(1, input_ids.shape[1]):
            if mask[row, t]:
                token = input_ids[row, t]
                total = total + torch.log_softmax(policy_logits[row, t - 1], 0)[token]
                total = total - torch.log_softmax(ref_logits[row, t - 1].detach(), 0)[token]
        totals.append(total)
    return torch.stack(totals)


@right("reply_log_ratio")
def _(policy_logits, ref_logits, input_ids, mask):
    def logps(logits):
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), input_ids[:, 1:], reduction="none")
        return -(losses * mask[:, 1:]).sum(-1)

    with torch.no_grad():
        reference = logps(ref_logits)
    return logps(policy_logits) - reference


@wrong("reply_log_ratio", "no shift")
def _(policy_logits, ref_logits, input_ids, mask):
    def logps(logits):
        return -(F.cross_entropy(logits.transpose(1, 2), input_ids, reduction="none") * mask).sum(-1)

    return logps(policy_logits) - logps(ref_logits.detach())


@wrong("reply_log_ratio", "missing detach")
def _(policy_logits, ref_logits, input_ids, mask):
    def logps(logits):
        return -(F.cross_entropy(logits[:, :-1].transpose(1, 2), input_ids[:, 1:], reduction="none") * mask[:, 1:]).sum(
            -1
        )

    return logps(policy_logits) - logps(ref_logits)


@wrong("reply_log_ratio")
def _(policy_logits, ref_logits, input_ids, mask):
    logps = policy_logits[:, :-1].softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    ref = ref_logits[:, :-1].softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    return ((logps / ref.detach()) * mask[:, 1:]).sum(-1)


@right("dpo_loss")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    pi_logratios = policy_chosen_logps - policy_rejected_logps
    ref_logratios = ref_chosen_logps - ref_rejected_logps
    return F.softplus(-beta * (pi_logratios - ref_logratios)).mean()


@right("dpo_loss")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    losses = []
    for pc, pr, rc, rr in zip(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, strict=True
    ):
        losses.append(-F.logsigmoid(beta * (pc - rc) - beta * (pr - rr)))
    return sum(losses) / len(losses)


@wrong("dpo_loss", "missing logsigmoid")  # the article's
def _(chosen_logprobs, rejected_logprobs, chosen_ref_logprobs, rejected_ref_logprobs, beta):
    chosen_rewards = beta * (chosen_logprobs - chosen_ref_logprobs)
    rejected_rewards = beta * (rejected_logprobs - rejected_ref_logprobs)
    return -torch.log(torch.sigmoid(chosen_rewards - rejected_rewards)).mean()


@wrong("dpo_loss", "chosen and rejected swapped")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    pi_logratios = policy_rejected_logps - policy_chosen_logps
    ref_logratios = ref_rejected_logps - ref_chosen_logps
    return F.softplus(-beta * (pi_logratios - ref_logratios)).mean()


@wrong("dpo_loss", "no gradient")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    margin = policy_chosen_logps - policy_rejected_logps - ref_chosen_logps + ref_rejected_logps
    return np.logaddexp(0, -beta * margin.double().numpy()).mean()


@wrong("dpo_loss")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    margin = policy_chosen_logps - policy_rejected_logps - ref_chosen_logps + ref_rejected_logps
    return torch.relu(1 - beta * margin).mean()


@right("dpo_gradient_weight")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    chosen_reward = beta * (policy_chosen_logps - ref_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - ref_rejected_logps)
    return beta * torch.sigmoid(rejected_reward - chosen_reward)


@wrong("dpo_gradient_weight", "the derivative of the sigmoid")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    margin = beta * (policy_chosen_logps - policy_rejected_logps - ref_chosen_logps + ref_rejected_logps)
    return beta * torch.sigmoid(margin) * (1 - torch.sigmoid(margin))


@wrong("dpo_gradient_weight")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    margin = beta * (policy_chosen_logps - policy_rejected_logps - ref_chosen_logps + ref_rejected_logps)
    return beta * torch.sigmoid(-margin) / len(margin)


wrong("what_beta_does")("larger")
wrong("ipo_margin")(1.0)
wrong("unseen_reply")("nothing")


# --- lesson 05 ----------------------------------------------------------------------------------------------------


@right("lora_forward")
def _(x, weight, lora_A, lora_B, alpha):  # noqa: N803
    frozen, r = weight.detach(), lora_A.shape[0]
    return x @ (frozen + (alpha / r) * lora_B @ lora_A).T


@right("lora_forward")
def _(x, weight, lora_A, lora_B, alpha):  # noqa: N803
    scale = alpha / lora_B.size(1)
    down = torch.einsum("...i,ri->...r", x, lora_A)
    return torch.einsum("...i,oi->...o", x, weight.detach()) + scale * torch.einsum("...r,or->...o", down, lora_B)


@wrong("lora_forward", "alpha not divided by r")
def _(x, weight, lora_A, lora_B, alpha):  # noqa: N803
    return x @ weight.detach().T + alpha * ((x @ lora_A.T) @ lora_B.T)


@wrong("lora_forward", "missing detach")
def _(x, weight, lora_A, lora_B, alpha):  # noqa: N803
    return x @ weight.T + alpha / lora_A.shape[0] * ((x @ lora_A.T) @ lora_B.T)


@wrong("lora_forward")  # peft's dropout, which has no place in a layer at rest
def _(x, weight, lora_A, lora_B, alpha):  # noqa: N803
    return x @ weight.detach().T + alpha / len(lora_A) * (F.dropout(x, 0.1) @ lora_A.T) @ lora_B.T


@right("lora_merge")
def _(weight, lora_A, lora_B, alpha):  # noqa: N803
    merged = weight.clone()
    r = lora_A.shape[0]
    for k in range(r):
        merged += alpha / r * torch.outer(lora_B[:, k], lora_A[k])
    return merged


@wrong("lora_merge", "no scale")
def _(weight, lora_A, lora_B, alpha):  # noqa: N803
    return torch.addmm(weight, lora_B, lora_A)


@wrong("lora_merge")
def _(weight, lora_A, lora_B, alpha):  # noqa: N803
    return weight * (1 + alpha / len(lora_A) * lora_B @ lora_A)


@right("lora_parameter_count")
def _(shapes, r):
    total = 0
    for out_features, in_features in shapes:
        total += torch.empty(r, in_features).numel() + torch.empty(out_features, r).numel()
    return total


@wrong("lora_parameter_count", "A alone")
def _(shapes, r):
    return sum(r * shape[1] for shape in shapes)


@wrong("lora_parameter_count")  # as rows of a table: one r for each matrix
def _(shapes, r):
    return sum(a + b + r for a, b in shapes)


wrong("rank_without_alpha", "turned round")(8)
wrong("rank_without_alpha")(4)
wrong("bits_in_nf4", "without double quantisation")(4.5)
wrong("bits_in_nf4")(8.127)


@right("completion_labels")
def _(input_ids, attention_mask, prompt_lengths, pad_id):
    labels = torch.full_like(input_ids, -100)
    for row, start in enumerate(prompt_lengths.tolist()):
        end = int(attention_mask[row].sum())
        labels[row, start:end] = input_ids[row, start:end]
    return labels


@wrong("completion_labels", "the EOS masked with the padding")
def _(input_ids, attention_mask, prompt_lengths, pad_id):
    labels = input_ids.clone()
    labels[labels == pad_id] = -100
    for row, start in enumerate(prompt_lengths):
        labels[row, :start] = -100
    return labels


@wrong("completion_labels", "the prompt trained on")
def _(input_ids, attention_mask, prompt_lengths, pad_id):
    return torch.where(attention_mask == 1, input_ids, -100)


@wrong("completion_labels")  # the reply masked, the prompt kept
def _(input_ids, attention_mask, prompt_lengths, pad_id):
    places = torch.arange(input_ids.shape[1])
    return input_ids.masked_fill((places >= prompt_lengths[:, None]) | (attention_mask == 0), -100)


@right("assistant_labels")
def _(input_ids, header, eos_id):
    labels, t = [-100] * len(input_ids), len(header)
    while t < len(input_ids):
        if input_ids[t - len(header) : t] == header:
            end = input_ids.index(eos_id, t)
            labels[t : end + 1] = input_ids[t : end + 1]
            t = end
        t += 1
    return labels


@wrong("assistant_labels", "the end of the reply left out")
def _(input_ids, header, eos_id):
    labels, t = [-100] * len(input_ids), len(header)
    while t < len(input_ids):
        if input_ids[t - len(header) : t] == header:
            end = input_ids.index(eos_id, t)
            labels[t:end] = input_ids[t:end]
            t = end
        t += 1
    return labels


@wrong("assistant_labels")  # the last token of the header alone, found anywhere
def _(input_ids, header, eos_id):
    labels, keep = [-100] * len(input_ids), False
    for t, token in enumerate(input_ids):
        if keep:
            labels[t] = token
        keep = (keep or token == header[-1]) and token != eos_id
    return labels


@right("sft_loss")
def _(logits, labels):
    logps = logits[:, :-1].log_softmax(-1)
    total, count = 0, 0
    for row in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            if labels[row, t] != -100:
                total, count = total - logps[row, t - 1, labels[row, t]], count + 1
    return total / count


@right("sft_loss")
def _(logits, labels):
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])


@wrong("sft_loss", "no shift")
def _(logits, labels):
    return F.cross_entropy(logits.transpose(1, 2), labels)


@wrong("sft_loss")
def _(logits, labels):
    keep = labels[:, 1:] != -100
    return -logits[:, :-1].gather(-1, labels[:, 1:].clamp(min=0)[..., None]).squeeze(-1)[keep].mean()


@right("perplexity")
def _(logps, mask):
    return float(np.exp(-logps.numpy()[mask.numpy() == 1].mean()))


@wrong("perplexity", "the mean of perplexities")
def _(logps, mask):
    return np.mean([math.exp(-row[keep == 1].mean()) for row, keep in zip(logps, mask, strict=True)])


@wrong("perplexity")
def _(logps, mask):
    return torch.exp(-logps[mask == 1].median())


wrong("pad_is_eos", "harmless")("stops")
wrong("pad_is_eos")("masked")


# --- lesson 06 ----------------------------------------------------------------------------------------------------


@right("last_token_index")
def _(input_ids, pad_id):
    return [max(t for t, token in enumerate(row) if token != pad_id) for row in input_ids.tolist()]


@right("last_token_index")
def _(input_ids, pad_id):
    return input_ids.shape[1] - 1 - (input_ids != pad_id).flip(1).int().argmax(dim=1)


@wrong("last_token_index", "the token before the first padding")  # transformers' own, until its pull request 35911
def _(input_ids, pad_id):
    return torch.eq(input_ids, pad_id).int().argmax(-1) - 1


@wrong("last_token_index", "the number of real tokens")
def _(input_ids, pad_id):
    attention_mask = (input_ids != pad_id).long()
    return attention_mask.sum(1) - 1


@wrong("last_token_index")
def _(input_ids, pad_id):
    return [row.index(pad_id) if pad_id in row else len(row) - 1 for row in input_ids.tolist()]


@right("ranking_loss")
def _(rewards, counts):
    total = 0
    for row, k in zip(rewards, counts, strict=True):
        k, loss = int(k), 0
        for i in range(k):
            for j in range(i + 1, k):
                loss = loss + F.softplus(row[j] - row[i])
        total = total + loss / (k * (k - 1) / 2)
    return total / len(rewards)


@right("ranking_loss")
def _(rewards, counts):
    losses = -F.logsigmoid(rewards[:, :, None] - rewards[:, None, :])
    places = torch.arange(rewards.shape[1])
    pairs = (places[:, None] < places) & (places < counts[:, None, None])
    return ((losses * pairs).sum((1, 2)) / pairs.sum((1, 2))).mean()


@wrong("ranking_loss", "missing logsigmoid")  # the article's loss, on every pair
def _(rewards, counts):
    by_prompt = []
    for row, k in zip(rewards, counts.tolist(), strict=True):
        i, j = torch.triu_indices(k, k, 1)
        by_prompt.append(-torch.log(torch.sigmoid(row[i] - row[j])).mean())
    return sum(by_prompt) / len(by_prompt)


@wrong("ranking_loss", "all pairs in one pot")
def _(rewards, counts):
    losses = []
    for row, k in zip(rewards, counts.tolist(), strict=True):
        losses += [F.softplus(row[j] - row[i]) for i in range(k) for j in range(i + 1, k)]
    return sum(losses) / len(losses)


@wrong("ranking_loss", "no gradient")
def _(rewards, counts):
    by_prompt = []
    for row, k in zip(rewards.detach(), counts.tolist(), strict=True):
        i, j = torch.triu_indices(k, k, 1)
        by_prompt.append(F.softplus(row[j] - row[i]).mean().item())
    return sum(by_prompt) / len(by_prompt)


@wrong("ranking_loss")  # the first against the rest, and nothing else
def _(rewards, counts):
    losses = [F.softplus(row[1:k] - row[0]).mean() for row, k in zip(rewards, counts.tolist(), strict=True)]
    return sum(losses) / len(losses)


@right("margin_accuracy")
def _(margins, gold_gaps):
    points = [
        0.5 if m == 0 else float((m > 0) == (g > 0)) for m, g in zip(margins, gold_gaps, strict=True) if abs(g) > 1e-9
    ]
    return sum(points) / len(points)


@wrong("margin_accuracy", "the model's ties counted as errors")  # the article's `>`
def _(margins, gold_gaps):
    correct, total = 0, 0
    for m, g in zip(margins, gold_gaps, strict=True):
        if g == 0:
            continue
        correct += (m if g > 0 else -m) > 0
        total += 1
    return correct / total


@wrong("margin_accuracy")
def _(margins, gold_gaps):
    return np.mean(np.sign(margins) == np.sign(gold_gaps))


@right("oracle_ceiling")
def _(gaps, temperature, flip_rate):
    p = 1 / (1 + np.exp(-np.asarray(gaps) / temperature))
    p = p + flip_rate - 2 * p * flip_rate
    return np.maximum(p, 1 - p).mean()


@wrong("oracle_ceiling", "flips forgotten")
def _(gaps, temperature, flip_rate):
    p = 1 / (1 + np.exp(-np.asarray(gaps) / temperature))
    return np.maximum(p, 1 - p).mean()


@wrong("oracle_ceiling")
def _(gaps, temperature, flip_rate):
    return np.mean(1 / (1 + np.exp(-np.abs(gaps) / temperature))) - flip_rate


@right("expected_calibration_error")
def _(margins, labels, n_bins):
    predictions = []
    for m, y in zip(margins, labels, strict=True):
        p = 1 / (1 + math.exp(-m))
        predictions += [(p, y), (1 - p, 1 - y)]
    error = 0
    for b in range(n_bins):
        inside = [(p, y) for p, y in predictions if min(int(p * n_bins), n_bins - 1) == b]
        error += abs(sum(y - p for p, y in inside)) / len(predictions)
    return error


@wrong("expected_calibration_error", "each pair one way only")
def _(margins, labels, n_bins):
    p = 1 / (1 + np.exp(-margins))
    error = 0
    for b in range(n_bins):
        inside = np.minimum((p * n_bins).astype(int), n_bins - 1) == b
        error += abs((labels - p)[inside].sum()) / len(p)
    return error


@wrong("expected_calibration_error")
def _(margins, labels, n_bins):
    return abs(np.mean(labels) - np.mean(margins > 0))


wrong("stuck_at_log_2", "slow taken for stuck")("rate")
wrong("comparisons_in_a_batch", "replies counted")(64 * 9)
wrong("comparisons_in_a_batch")(64 * 10)


# --- lesson 08 ----------------------------------------------------------------------------------------------------


@right("reference_distance")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps):
    worst = 0.0
    for policy, ref in ((policy_chosen_logps, ref_chosen_logps), (policy_rejected_logps, ref_rejected_logps)):
        for a, b in zip(policy.tolist(), ref.tolist(), strict=True):
            worst = max(worst, abs(a - b))
    return worst


@wrong("reference_distance", "only the margin")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps):
    policy = policy_chosen_logps - policy_rejected_logps
    return torch.max(torch.abs(policy - (ref_chosen_logps - ref_rejected_logps)))


@wrong("reference_distance")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps):
    return (
        (policy_chosen_logps - ref_chosen_logps).square() + (policy_rejected_logps - ref_rejected_logps).square()
    ).max()


def _row_logps(logits, ids, mask):
    return -(F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]).sum(-1)


@right("dpo_batch_loss")
def _(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta):
    n = len(input_ids) // 2
    logps = _row_logps(policy_logits, input_ids, reply_mask)
    margins = (logps[:n] - logps[n:]) - (ref_chosen_logps - ref_rejected_logps)
    return F.softplus(-beta * margins).mean()


@right("dpo_batch_loss")
def _(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta):
    total, n = 0, len(ref_chosen_logps)
    for pair in range(n):
        rewards = []
        for row, ref in ((pair, ref_chosen_logps[pair]), (n + pair, ref_rejected_logps[pair])):
            logp = 0
            for t in range(1, input_ids.shape[1]):
                if reply_mask[row, t]:
                    logp = logp + policy_logits[row, t - 1].log_softmax(0)[input_ids[row, t]]
            rewards.append(beta * (logp - ref))
        total = total - F.logsigmoid(rewards[0] - rewards[1])
    return total / n


@wrong("dpo_batch_loss", "rows taken in turns")
def _(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta):
    pairs = _row_logps(policy_logits, input_ids, reply_mask).view(-1, 2)
    margins = pairs[:, 0] - pairs[:, 1] - ref_chosen_logps + ref_rejected_logps
    return F.softplus(-beta * margins).mean()


@wrong("dpo_batch_loss", "no shift")
def _(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta):
    logps = -(F.cross_entropy(policy_logits.transpose(1, 2), input_ids, reduction="none") * reply_mask).sum(-1)
    chosen, rejected = logps.chunk(2)
    return F.softplus(-beta * ((chosen - rejected) - (ref_chosen_logps - ref_rejected_logps))).mean()


@wrong("dpo_batch_loss", "no gradient")
def _(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta):
    chosen, rejected = _row_logps(policy_logits.detach(), input_ids, reply_mask).chunk(2)
    return F.softplus(-beta * ((chosen - rejected) - (ref_chosen_logps - ref_rejected_logps))).mean()


@wrong("dpo_batch_loss")
def _(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta):
    chosen, rejected = _row_logps(policy_logits, input_ids, reply_mask).chunk(2)
    return F.softplus(-beta * ((chosen - rejected) - (ref_chosen_logps - ref_rejected_logps)).mean())


@right("dpo_sft_batch_loss")
def _(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta, sft_weight):
    chosen, rejected = _row_logps(policy_logits, input_ids, reply_mask).chunk(2)
    dpo = F.softplus(-beta * ((chosen - rejected) - (ref_chosen_logps - ref_rejected_logps))).mean()
    return dpo - sft_weight * chosen.sum() / reply_mask[: len(chosen), 1:].sum()


@wrong("dpo_sft_batch_loss", "each reply's own mean first")  # the paper's
def _(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta, sft_weight):
    chosen, rejected = _row_logps(policy_logits, input_ids, reply_mask).chunk(2)
    dpo = F.softplus(-beta * ((chosen - rejected) - (ref_chosen_logps - ref_rejected_logps)))
    return (dpo - sft_weight * chosen / reply_mask[: len(chosen), 1:].sum(-1)).mean()


@wrong("dpo_sft_batch_loss")
def _(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta, sft_weight):
    chosen, rejected = _row_logps(policy_logits, input_ids, reply_mask).chunk(2)
    dpo = F.softplus(-beta * ((chosen - rejected) - (ref_chosen_logps - ref_rejected_logps))).mean()
    return dpo - sft_weight * (chosen - ref_chosen_logps).mean()


@right("implicit_reward_accuracy")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps):
    right = 0.0
    for pc, pr, rc, rr in zip(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, strict=True
    ):
        right += 1.0 if pc - rc > pr - rr else 0.5 if pc - rc == pr - rr else 0.0
    return right / len(policy_chosen_logps)


@wrong("implicit_reward_accuracy", "ties lost")  # as in TRL's log
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps):
    chosen_rewards, rejected_rewards = (
        policy_chosen_logps - ref_chosen_logps,
        policy_rejected_logps - ref_rejected_logps,
    )
    return (chosen_rewards > rejected_rewards).float().mean()


@wrong("implicit_reward_accuracy")
def _(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps):
    margins = (policy_chosen_logps - ref_chosen_logps) - (policy_rejected_logps - ref_rejected_logps)
    return torch.sigmoid(margins).mean()


wrong("margins_at_optimum")([2.1972, 0.4394])
wrong("which_run_displaces")("f")
wrong("stuck_at_log_two")("dropout")
wrong("two_sevens")(16.0)


# --- lesson 07 ----------------------------------------------------------------------------------------------------


@right("reply_mask")
def _(responses, stop_id):
    mask, ended = torch.zeros_like(responses, dtype=torch.bool), []
    for row, tokens in enumerate(responses.tolist()):
        ended.append(stop_id in tokens)
        length = tokens.index(stop_id) + 1 if stop_id in tokens else len(tokens)
        mask[row, :length] = True
    return mask, torch.tensor(ended)


@wrong("reply_mask", "the end left out")
def _(responses, stop_id):
    mask = torch.ones_like(responses)
    for row, tokens in enumerate(responses.tolist()):
        if stop_id in tokens:
            mask[row, tokens.index(stop_id) :] = 0
    return mask, (responses == stop_id).sum(1) > 0


@wrong("reply_mask")
def _(responses, stop_id):
    return responses != 0, (responses == stop_id).any(1)


@right("mean_reply_kl")
def _(logps, ref_logps, mask):
    totals = [(logps[i][mask[i] == 1] - ref_logps[i][mask[i] == 1]).sum() for i in range(len(logps))]
    return sum(totals) / len(totals)


@wrong("mean_reply_kl", "reference minus policy")
def _(logps, ref_logps, mask):
    return torch.where(mask == 1, ref_logps - logps, 0.0).sum() / len(mask)


@wrong("mean_reply_kl")  # the article's
def _(logps, ref_logps, mask):
    return torch.nn.functional.kl_div(logps, ref_logps)


@right("scored_rewards")
def _(scores, ended, logps, ref_logps, mask, kl_coef, missing_eos_penalty):
    rewards = kl_coef * (ref_logps - logps)
    rewards[mask == 0] = 0
    rewards[:, -1] += torch.where(ended, scores, scores - missing_eos_penalty)
    return rewards


@wrong("scored_rewards", "the penalty on those that ended")
def _(scores, ended, logps, ref_logps, mask, kl_coef, missing_eos_penalty):
    rewards = kl_coef * (ref_logps - logps) * mask
    rewards[:, -1] += scores - missing_eos_penalty * ended
    return rewards


@wrong("scored_rewards")
def _(scores, ended, logps, ref_logps, mask, kl_coef, missing_eos_penalty):
    return scores - missing_eos_penalty * (~ended) - kl_coef * ((logps - ref_logps) * mask).sum(1)


@right("whitened_advantages")
def _(rewards, values, mask):
    mask = mask == 1
    rewards = torch.where(mask, rewards, 0.0)
    a = (rewards.flip(1).cumsum(1).flip(1) - values).detach()
    real = a[mask]
    return torch.where(mask, (a - real.mean()) / real.std(), 0.0)


@wrong("whitened_advantages", "padding counted")
@torch.no_grad()
def _(rewards, values, mask):
    a = ((rewards * mask).flip(1).cumsum(1).flip(1) - values) * mask
    return (a - a.mean()) / a.std() * mask


@wrong("whitened_advantages")
@torch.no_grad()
def _(rewards, values, mask):
    a = (rewards * mask).sum(1, keepdim=True) - values
    real = a[mask == 1]
    return (a - real.mean()) / real.std() * mask


@right("clip_fraction")
def _(logps, old_logps, advantages, mask, clip_range):
    count = total = 0
    for new, old, a, m in zip(logps.view(-1), old_logps.view(-1), advantages.view(-1), mask.view(-1), strict=True):
        if m:
            ratio = math.exp(new - old)
            count += (a > 0 and ratio > 1 + clip_range) or (a < 0 and ratio < 1 - clip_range)
            total += 1
    return count / total


@wrong("clip_fraction", "either side, whatever the advantage")
def _(logps, old_logps, advantages, mask, clip_range):
    ratio = (logps - old_logps).exp()
    outside = (ratio < 1 - clip_range) | (ratio > 1 + clip_range)
    return (outside * mask).sum() / mask.sum()


@wrong("clip_fraction")
def _(logps, old_logps, advantages, mask, clip_range):
    ratio = (logps - old_logps).exp()
    inside = (ratio - ratio.clamp(1 - clip_range, 1 + clip_range)).abs() == 0
    return (inside * mask).sum() / mask.sum()


wrong("what_target_kl_watches", "the reference in place of the old policy")("Reference")
wrong("what_target_kl_watches")("clip")


wrong("diagnose_four_runs", "a KL that is paid for blamed")(("padding", "no KL", "Sampling", "end"))
wrong("diagnose_four_runs")(["padding", "value", "sampling"])


@right("ppo_minibatch_loss")
def _(
    logits, values, tokens, old_logps, old_values, advantages, returns, mask, temperature, cliprange, clip_v, vf_coef
):
    logps = -F.cross_entropy(logits.flatten(0, 1) / temperature, tokens.flatten(), reduction="none").view_as(values)
    m = mask == 1
    ratio, a, v, v_old, r = (logps - old_logps)[m].exp(), advantages[m], values[m], old_values[m], returns[m]
    policy = -torch.minimum(ratio * a, ratio.clamp(1 - cliprange, 1 + cliprange) * a).mean()
    near = v_old + (v - v_old).clamp(-clip_v, clip_v)
    return policy + vf_coef * 0.5 * torch.maximum((v - r) ** 2, (near - r) ** 2).mean()


@wrong("ppo_minibatch_loss", "the temperature forgotten")
def _(
    logits, values, tokens, old_logps, old_values, advantages, returns, mask, temperature, cliprange, clip_v, vf_coef
):
    logps = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    m = mask == 1
    ratio, a, v, v_old, r = (logps - old_logps)[m].exp(), advantages[m], values[m], old_values[m], returns[m]
    policy = -torch.minimum(ratio * a, ratio.clamp(1 - cliprange, 1 + cliprange) * a).mean()
    near = v_old + (v - v_old).clamp(-clip_v, clip_v)
    return policy + vf_coef * 0.5 * torch.maximum((v - r) ** 2, (near - r) ** 2).mean()


@wrong("ppo_minibatch_loss")  # the article's ppo_loss, and no critic
def _(
    logits, values, tokens, old_logps, old_values, advantages, returns, mask, temperature, cliprange, clip_v, vf_coef
):
    logps = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    ratios = torch.exp(logps - old_logps)
    return -torch.min(ratios * advantages, torch.clamp(ratios, 1 - cliprange, 1 + cliprange) * advantages).mean()


# --- lesson 09 ----------------------------------------------------------------------------------------------------


@right("importance_weights")
def _(rewards, beta):
    weights = torch.tensor(rewards / beta).softmax(0)
    return weights, 1 / weights.square().sum()


@right("importance_weights")
def _(rewards, beta):
    raw = [math.exp((r - max(rewards)) / beta) for r in rewards]
    return [w / sum(raw) for w in raw], sum(raw) ** 2 / sum(w**2 for w in raw)


@wrong("importance_weights", "beta turned round")
def _(rewards, beta):
    raw = np.exp(beta * rewards)
    return raw / raw.sum(), raw.sum() ** 2 / (raw**2).sum()


@wrong("importance_weights", "exp overflows")
def _(rewards, beta):
    raw = np.exp(rewards / beta)
    return raw / raw.sum(), raw.sum() ** 2 / (raw**2).sum()


@wrong("importance_weights", "the largest weight alone")
def _(rewards, beta):
    weights = torch.tensor(rewards / beta).softmax(0)
    return weights, 1 / max(weights)


@wrong("importance_weights")
def _(rewards, beta):
    weights = torch.tensor(rewards / beta).softmax(0)
    return weights, torch.exp(-(weights * weights.log()).sum())


@right("share_of_frontier")
def _(reward, kl, start, kls, rewards):
    kls, rewards = [0, *kls], [start, *rewards]
    i = next(j for j in range(1, len(kls)) if kls[j] >= kl)
    slope = (rewards[i] - rewards[i - 1]) / (kls[i] - kls[i - 1])
    return (reward - start) / (rewards[i - 1] + slope * (kl - kls[i - 1]) - start)


@wrong("share_of_frontier", "levels in place of gains")
def _(reward, kl, start, kls, rewards):
    return reward / np.interp(kl, np.insert(kls, 0, 0), np.insert(rewards, 0, start))


@wrong("share_of_frontier", "the start forgotten")
def _(reward, kl, start, kls, rewards):
    possible = np.interp(kl, kls, rewards)
    return (reward - start) / (possible - start)


@wrong("share_of_frontier")
def _(reward, kl, start, kls, rewards):
    possible = np.interp(kl, np.insert(kls, 0, 0), np.insert(rewards, 0, start))
    return (possible - start) / (reward - start)


@right("best_of_n_kl_bound")
def _(n):
    return np.log(n) - 1 + 1 / n


@right("best_of_n_kl_bound")
def _(n):
    u = (np.arange(400_000) + 0.5) / 400_000
    return (n * u ** (n - 1) * (np.log(n) + (n - 1) * np.log(u))).mean()


@wrong("best_of_n_kl_bound", "log n alone")
def _(n):
    return torch.log(torch.tensor(float(n)))


@wrong("best_of_n_kl_bound", "1 taken off")
def _(n):
    return np.log(n) - 1


@wrong("best_of_n_kl_bound")
def _(n):
    return np.log(n - (n - 1) / n)


@right("best_of_n_reward")
def _(ref_probs, rewards, n):
    from itertools import product

    total = 0.0
    for drawn in product(range(len(rewards)), repeat=n):
        total += np.prod(ref_probs[list(drawn)]) * max(rewards[i] for i in drawn)
    return total


@right("best_of_n_reward")
def _(ref_probs, rewards, n):
    levels = sorted(set(rewards))
    at_most = [sum(p for p, r in zip(ref_probs, rewards, strict=True) if r <= level) ** n for level in levels]
    return sum(level * (a - b) for level, a, b in zip(levels, at_most, [0, *at_most[:-1]], strict=True))


@wrong("best_of_n_reward", "not sorted by reward")
def _(ref_probs, rewards, n):
    at_most = np.cumsum(ref_probs) ** n
    return rewards @ (at_most - np.concatenate([[0], at_most[:-1]]))


@wrong("best_of_n_reward", "the worst of n")
def _(ref_probs, rewards, n):
    order = np.argsort(rewards)
    at_least = 1 - np.insert(np.cumsum(ref_probs[order]), 0, 0)
    return (at_least[:-1] ** n - np.clip(at_least[1:], 0, 1) ** n) @ rewards[order]


@wrong("best_of_n_reward")
def _(ref_probs, rewards, n):
    return n * ref_probs @ rewards


@right("mean_over_seeds")
def _(values):
    from scipy.stats import t

    return (
        np.mean(values),
        *t.interval(0.95, len(values) - 1, np.mean(values), np.std(values, ddof=1) / len(values) ** 0.5),
    )


@wrong("mean_over_seeds", "1.96 in place of t")
def _(values):
    x = torch.tensor(values)
    half = 1.96 * x.std() / len(x) ** 0.5
    return x.mean(), x.mean() - half, x.mean() + half


@wrong("mean_over_seeds", "the seeds' spread, not their mean's")
def _(values):
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * torch.tensor(values).std()
    return np.mean(values), np.mean(values) - half, np.mean(values) + half


@wrong("mean_over_seeds")
def _(values):
    return np.mean(values), min(values), max(values)


wrong("weights_held", "the value forgotten")([40.5, 13.6, 27.0, 13.55])
wrong("weights_held")([13.5, 13.5, 13.5, 13.5])
wrong("dpos_reference", "no reference")("nowhere")
wrong("choose_fixed_pairs", "the rejected replies thrown away")("sft")
wrong("choose_live_reward", "DPO for everything")("these_pairs")
