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
