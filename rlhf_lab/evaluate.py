"""How good is it, and how sure are we: intervals, win rates, calibration, generation, KL and reward scores.

The statistics are numpy and need no model. What runs a model (`generate`, `sequence_kl`, `score`) imports torch when
called, so importing this module is instant.

Sources: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval); Wilson 1927,
JASA 22:209 (score interval); Guo et al. 2017, arXiv:1706.04599 (expected calibration error); Schulman 2020,
http://joschu.net/blog/kl-approx.html (the k1 estimator of the KL divergence).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm.auto import tqdm

if TYPE_CHECKING:
    import torch

Conversation = Sequence[dict]  # [{"role": "user", "content": "..."}, ...], as TRL and chat templates take it
Prompt = Conversation | str

TIE = 1e-9  # two scores closer than this are equal: float noise is no preference
Z_95 = 1.959963984540054  # the normal quantile at 0.975
BOOTSTRAP_CELLS = 1 << 22  # resampled indices held at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        value, low, high = (format(number, spec or ".2f") for number in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        return f"{self}"

    def as_dict(self) -> dict[str, float]:
        """{"value", "low", "high"}, for JSON; `Interval(**d)` reads it back."""
        return {name: float(number) for name, number in asdict(self).items()}


# ---- statistics ----


def mean_interval(values: Sequence[float], seed: int = 0, n_boot: int = 2000) -> Interval:
    """The mean of `values` (n,) with the 95 % percentile bootstrap interval, the same for the same seed.

    Values that are all equal give an interval of width zero: the bootstrap cannot imagine what it never saw. For
    counts near 0 or n, `wilson_interval` can. Raises ValueError on no values, or on one that is not finite.
    """
    values = _finite_vector("values", values)
    generator = np.random.default_rng(seed)
    rows = max(1, BOOTSTRAP_CELLS // len(values))
    means = np.concatenate(
        [
            values[generator.integers(len(values), size=(min(rows, n_boot - start), len(values)))].mean(axis=1)
            for start in range(0, n_boot, rows)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


def preference_outcomes(scores: Sequence[float], baseline_scores: Sequence[float]) -> np.ndarray:
    """For each pair (n,): 1 where `scores` is higher, 0 where lower, 0.5 where they differ by at most 1e-9."""
    scores = _finite_vector("scores", scores)
    baseline_scores = _finite_vector("baseline_scores", baseline_scores)
    if len(scores) != len(baseline_scores):
        raise ValueError(f"{len(scores)} scores against {len(baseline_scores)}: they must be of the same prompts")
    difference = scores - baseline_scores
    return np.where(np.abs(difference) <= TIE, 0.5, (difference > 0).astype(float))


def win_rate(scores: Sequence[float], baseline_scores: Sequence[float], seed: int = 0, n_boot: int = 2000) -> Interval:
    """Share of prompts on which `scores` (n,) beats `baseline_scores` (n,), a tie counting half.

    The 95 % interval resamples prompts, and a prompt keeps its pair of scores (paired bootstrap), so it speaks of
    new prompts and not of new samples on the same ones.
    """
    return mean_interval(preference_outcomes(scores, baseline_scores), seed=seed, n_boot=n_boot)


def wilson_interval(successes: float, n: int) -> Interval:
    """A proportion with its 95 % Wilson score interval (Wilson 1927), which does not collapse at 0 or at n."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: need n > 0 and 0 <= successes <= n")
    share = successes / n
    scale = 1 + Z_95**2 / n
    centre = (share + Z_95**2 / (2 * n)) / scale
    half = Z_95 * np.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2)) / scale
    return Interval(share, float(max(0.0, min(centre - half, share))), float(min(1.0, max(centre + half, share))))


def pair_accuracy(chosen_scores: Sequence[float], rejected_scores: Sequence[float]) -> Interval:
    """Share of pairs (n,) whose chosen reply scores higher, ties half, with the Wilson interval.

    Counting a tie as half a success makes the interval, if anything, too wide.
    """
    outcomes = preference_outcomes(chosen_scores, rejected_scores)
    return wilson_interval(float(outcomes.sum()), len(outcomes))


class CalibrationCurve(NamedTuple):
    """One entry for each bin that holds a prediction (bins,): is what is said at 70 % right 70 % of the time?"""

    centre: np.ndarray  # middle of the bin
    predicted: np.ndarray  # mean predicted probability in it
    observed: np.ndarray  # share of it in which the first was preferred
    count: np.ndarray  # predictions in it; a pair makes two

    def as_dict(self) -> dict[str, list[float]]:
        return {name: values.tolist() for name, values in self._asdict().items()}


def calibration_curve(
    margins: Sequence[float], labels: Sequence[float] | None = None, n_bins: int = 10
) -> CalibrationCurve:
    """Predicted against observed preference, over `n_bins` equal bins of p = sigmoid(margin).

    `margins` (n,) are score(first) - score(second). `labels` (n,) say whether the first is preferred: 1, 0, or a share
    of annotators between. None means that the first always is, as when the margin is chosen - rejected.

    Which reply stands first must not tell the answer, else every label is 1 and calibration means nothing. So each
    pair is counted both ways, (p, label) and (1 - p, 1 - label), and the order it came in does not matter.
    """
    margins = _finite_vector("margins", margins)
    labels = np.ones_like(margins) if labels is None else _finite_vector("labels", labels)
    if len(margins) != len(labels):
        raise ValueError(f"{len(margins)} margins against {len(labels)} labels")
    if labels.min() < 0 or labels.max() > 1:
        raise ValueError("labels must lie between 0 (the second is preferred) and 1 (the first is)")
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    predicted = np.exp(-np.logaddexp(0.0, -np.concatenate([margins, -margins])))  # sigmoid that cannot overflow
    observed = np.concatenate([labels, 1 - labels])
    bins = np.minimum((predicted * n_bins).astype(int), n_bins - 1)
    count = np.bincount(bins, minlength=n_bins)
    filled = count > 0
    return CalibrationCurve(
        centre=((np.arange(n_bins) + 0.5) / n_bins)[filled],
        predicted=np.bincount(bins, predicted, n_bins)[filled] / count[filled],
        observed=np.bincount(bins, observed, n_bins)[filled] / count[filled],
        count=count[filled],
    )


def expected_calibration_error(
    margins: Sequence[float], labels: Sequence[float] | None = None, n_bins: int = 10
) -> float:
    """Mean over predictions of |observed - predicted| of their bin, in probability: 0 is calibrated (Guo et al. 2017).

    Takes what `calibration_curve` takes, and symmetrises as it does. It is biased upwards: on n pairs a perfect model
    shows about sqrt(n_bins / (pi n)) E[sqrt(p (1 - p))] by chance alone, 0.02 at 1,000 pairs and 10 bins.
    """
    curve = calibration_curve(margins, labels, n_bins)
    return float(np.average(np.abs(curve.observed - curve.predicted), weights=curve.count))


def _finite_vector(name: str, values: Sequence[float]) -> np.ndarray:
    vector = np.asarray(values, dtype=float)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"{name} must be a list of at least one number, got an array of shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name}[{int(np.flatnonzero(~np.isfinite(vector))[0])}] is not a finite number")
    return vector


# ---- models ----


def encode_prompt(tokenizer, prompt: Prompt) -> list[int]:
    """Token ids up to where the reply starts, with the BOS that belongs there and never two.

    A conversation goes through the chat template, which writes the BOS itself where the model has one. A raw string is
    tokenised as it is, after one BOS if the tokenizer has one.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        bos = tokenizer.bos_token_id
        ids = ids if bos is None or ids[:1] == [bos] else [bos, *ids]
    else:
        text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError("an empty prompt, and a tokenizer without BOS: there is nothing to continue")
    return ids


def encode_dialogue(tokenizer, prompt: Prompt, completion: str) -> list[int]:
    """Token ids of prompt and reply as a reward model reads them: templated, or raw with the EOS after it."""
    if isinstance(prompt, str):
        reply = tokenizer(completion, add_special_tokens=False)["input_ids"]
        return [*encode_prompt(tokenizer, prompt), *reply, tokenizer.eos_token_id]
    messages = [*prompt, {"role": "assistant", "content": completion}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def generate(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    description: str = "",
) -> list[str]:
    """One reply for each prompt, as text without special tokens and outer white space, in the order of the prompts.

    A prompt is a conversation, which gets the chat template, or a raw string, which is continued. Temperature 0 is
    greedy. A reply ends at an EOS of the tokenizer or of the model's generation config, or at `max_new_tokens`. Nothing
    else of the model's saved generation config is used.

    The same call gives the same replies whatever ran before, and leaves torch's random state as it found it. Another
    batch size draws other samples.
    """
    completions = generate_ids(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        description=description,
    )
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in completions]


def generate_ids(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    description: str = "",
) -> list[list[int]]:
    """`generate`, but the sampled token ids, the EOS included where there is one: what `sequence_kl` reads exactly."""
    from rlhf_lab.sampling import pad_left, sample

    if max_new_tokens < 1 or batch_size < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ValueError("need max_new_tokens >= 1, batch_size >= 1, temperature >= 0 and 0 < top_p <= 1")
    eos = _eos_ids(model, tokenizer)
    pad = next(id for id in (tokenizer.pad_token_id, *sorted(eos), 0) if id is not None)
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    completions: list[list[int]] = [[] for _ in encoded]
    with _inference(model), _seeded(model, seed):
        for batch in _by_length(encoded, batch_size, progress, description or "generate"):
            input_ids, attention_mask = pad_left([encoded[i] for i in batch], pad)
            replies = sample(
                model,
                input_ids.to(model.device),
                attention_mask.to(model.device),
                max_new_tokens,
                stop_ids=eos,
                pad_id=pad,
                temperature=temperature,
                top_p=top_p,
            )
            for i, ids in zip(batch, replies.tolist(), strict=True):
                completions[i] = _until_eos(ids, eos)
    return completions


def reply_logps(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    completions: Sequence[str | Sequence[int]],
    *,
    batch_size: int = 16,
    progress: bool = True,
    description: str = "log-probs",
) -> np.ndarray:
    """log pi(reply | prompt) for each prompt (n,): the sum over the reply's tokens, in nats.

    A completion given as the token ids of `generate_ids` is read exactly. A text is tokenised and the tokenizer's EOS
    set after it, which is what was sampled if the reply ended by itself and text and tokens correspond.
    """
    import torch

    from rlhf_lab.losses import sequence_logps

    _same_length(prompts, completions)
    starts = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    replies = [_completion_ids(tokenizer, completion) for completion in completions]
    sequences = [start + reply for start, reply in zip(starts, replies, strict=True)]
    result = np.zeros(len(sequences))
    with _inference(model):
        for batch in _by_length(sequences, batch_size, progress, description):
            input_ids, attention_mask = _pad_right([sequences[i] for i in batch], tokenizer.pad_token_id or 0)
            reply_mask = torch.zeros_like(attention_mask)
            for row, i in enumerate(batch):
                reply_mask[row, len(starts[i]) : len(sequences[i])] = 1
            # Logits before the first reply of the batch would only cost memory: 4 bytes x tokens x vocabulary.
            keep = input_ids.shape[1] - min(len(starts[i]) for i in batch) + 1
            input_ids, attention_mask, reply_mask = (
                tensor.to(model.device) for tensor in (input_ids, attention_mask, reply_mask)
            )
            logits = model(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=keep).logits
            result[batch] = sequence_logps(logits, input_ids[:, -keep:], reply_mask[:, -keep:]).double().cpu().numpy()
    return result


def sequence_kl(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    completions: Sequence[str | Sequence[int]],
    reference=None,
    *,
    batch_size: int = 16,
    progress: bool = True,
    description: str = "KL",
) -> np.ndarray:
    """For each prompt (n,): the sum over the reply's tokens of log pi(token) - log ref(token), in nats.

    This is k1 (Schulman 2020). Its mean over replies that the policy sampled at temperature 1 and top-p 1 estimates
    KL(policy || reference) per reply without bias; one entry may be negative. On other replies it estimates no KL.

    `reference` None means the model itself with its adapters off, so it must be a PeftModel. Completions are read as
    `reply_logps` reads them.
    """
    _same_length(prompts, completions)
    if reference is None and not hasattr(model, "disable_adapter"):
        raise ValueError("without a reference, the model must be a PeftModel whose adapters can be switched off")
    how = {"batch_size": batch_size, "progress": progress, "description": description}
    logps = reply_logps(model, tokenizer, prompts, completions, **how)
    with nullcontext() if reference is not None else model.disable_adapter():
        network = model if reference is None else reference
        return logps - reply_logps(network, tokenizer, prompts, completions, **how)


def score(
    reward_model,
    tokenizer,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    batch_size: int = 64,
    *,
    progress: bool = True,
    description: str = "",
) -> np.ndarray:
    """The reward model's score (n,) of each reply text to its prompt.

    `reward_model` is a sequence classifier with one label. It reads the score at the last token that is not padding,
    which it finds by `config.pad_token_id`: a model without one would read a padding token.
    """
    _same_length(prompts, completions)
    pad = reward_model.config.pad_token_id
    if pad is None:
        raise ValueError("the reward model has no config.pad_token_id: it cannot find the last token of a padded reply")
    if reward_model.config.num_labels != 1:
        raise ValueError(f"a reward model has one label, this classifier has {reward_model.config.num_labels}")
    sequences = [
        encode_dialogue(tokenizer, prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)
    ]
    scores = np.zeros(len(sequences))
    with _inference(reward_model):
        for batch in _by_length(sequences, batch_size, progress, description or "score"):
            input_ids, attention_mask = _pad_right([sequences[i] for i in batch], pad)
            logits = reward_model(
                input_ids=input_ids.to(reward_model.device), attention_mask=attention_mask.to(reward_model.device)
            ).logits
            scores[batch] = logits[:, 0].double().cpu().numpy()
    return scores


def _same_length(prompts: Sequence, completions: Sequence) -> None:
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts against {len(completions)} completions")


def _completion_ids(tokenizer, completion: str | Sequence[int]) -> list[int]:
    if isinstance(completion, str):
        return [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return [int(token) for token in completion]


def _eos_ids(model, tokenizer) -> set[int]:
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list | tuple) else [configured]
    return {int(token) for token in (tokenizer.eos_token_id, *configured) if token is not None}


def _until_eos(ids: list[int], eos: set[int]) -> list[int]:
    """Up to and with the first EOS."""
    end = next((position for position, token in enumerate(ids) if token in eos), len(ids))
    return ids[: end + 1]


def _pad_right(sequences: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    width = max(map(len, sequences))
    input_ids = torch.full((len(sequences), width), pad)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask


def _by_length(sequences: list[list[int]], batch_size: int, progress: bool, description: str) -> Iterator[list[int]]:
    """Batches of indices, like lengths together. The longest come first: memory that runs out does so at once."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    with tqdm(total=len(order), desc=description, unit="reply", disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            yield batch
            bar.update(len(batch))


@contextmanager
def _inference(model) -> Iterator[None]:
    """Dropout off, no gradients; each module's training flag is put back afterwards."""
    import torch

    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _seeded(model, seed: int) -> Iterator[None]:
    import torch

    on_gpu = model.device.type == "cuda"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if on_gpu else []):
        torch.manual_seed(seed)
        yield
