"""Every loss that TRL 1.16 has too is TRL's, with all its gradients, on the tiny Llama and real pairs of the help desk.

TRL's own trainer makes the batch from the pairs and computes its loss; ours starts from that batch and those weights.
fp64 to 1e-6 and fp32 to 1e-5, relative to the largest entry where that is above 1.
"""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch

from rlhf_lab import losses
from rlhf_lab.data import load_preferences
from rlhf_lab.profiles import DATA_DIR

TINY_LLAMA = DATA_DIR / "tiny-llama"
BETA, SMOOTHING = 0.1, 0.1
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=list(TOLERANCE), ids=["fp64", "fp32"])
def lab(request, tmp_path_factory):
    """The tiny Llama, a reference that differs from it, four real pairs, and what every trainer is told."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(TINY_LLAMA, dtype=request.param)
    reference = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in reference.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator).to(weight)
    common = {
        "output_dir": str(tmp_path_factory.mktemp("trl")),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "per_device_train_batch_size": 4,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    rows = load_preferences(DATA_DIR / "helpdesk" / "preferences_test.jsonl")[:4]
    return SimpleNamespace(
        model=model,
        reference=reference,
        tokenizer=AutoTokenizer.from_pretrained(TINY_LLAMA),
        rows=[{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows],
        common=common,
        tolerance=TOLERANCE[request.param],
    )


def build(lab, trainer, config, rows, *models, **settings):
    """A trainer of TRL and a batch of its own making."""
    from datasets import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL and transformers deprecate their own arguments
        args = config(**lab.common, **settings)
        made = trainer(*models, args=args, train_dataset=Dataset.from_list(rows), processing_class=lab.tokenizer)
        return made, next(iter(made.get_train_dataloader()))


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


def assert_same(lab, model, ours, theirs):
    """Two losses, and their gradients with respect to every weight of the model."""
    assert theirs.isfinite() and theirs != 0
    close(ours, theirs, lab.tolerance)
    pairs = list(zip(gradients(ours, model), gradients(theirs, model), strict=True))
    assert max(b.abs().max() for _, b in pairs if b is not None) > 1e-3
    for a, b in pairs:
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b, lab.tolerance)


def close(a, b, tolerance):
    torch.testing.assert_close(a.to(b.dtype), b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def logps(model, batch, mask):
    return losses.sequence_logps(
        model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["input_ids"], mask
    )


# ---- DPO and its relatives ----

DPO_LOSSES = {
    "sigmoid": lambda four, lengths: losses.dpo_loss(*four, beta=BETA),
    "ipo": lambda four, lengths: losses.ipo_loss(*four, BETA, *lengths),
    "robust": lambda four, lengths: losses.robust_dpo_loss(*four, beta=BETA, label_smoothing=SMOOTHING),
}


@pytest.fixture(scope="module")
def dpo(lab):
    from trl import DPOConfig, DPOTrainer

    settings = {"beta": BETA, "label_smoothing": SMOOTHING}
    return build(
        lab, DPOTrainer, DPOConfig, lab.rows, copy.deepcopy(lab.model), copy.deepcopy(lab.reference), **settings
    )


def trl_dpo_loss(trainer, loss_type, batch):
    trainer.loss_types = [loss_type]
    return trainer._compute_loss(trainer.model, dict(batch), return_outputs=False)


def four_logps(lab, trainer, batch):
    """Of the chosen and rejected replies, under the policy and the reference, and how many tokens they have."""
    mask = batch["completion_mask"]
    with torch.no_grad():
        ref = logps(lab.reference, batch, mask).chunk(2)
    return (*logps(trainer.model, batch, mask).chunk(2), *ref), mask.sum(dim=1).chunk(2)


@pytest.mark.parametrize("loss_type", DPO_LOSSES)
def test_dpo_losses(lab, dpo, loss_type):
    trainer, batch = dpo
    ours = DPO_LOSSES[loss_type](*four_logps(lab, trainer, batch))
    assert_same(lab, trainer.model, ours, trl_dpo_loss(trainer, loss_type, batch))


def test_cdpo_is_what_trl_computes_for_one_pair_by_the_name_of_aot(lab, dpo):
    """TRL 1.16 leaves label_smoothing out of "sigmoid". "aot" has it; that sorts margins over the batch, and one
    pair is sorted already."""
    trainer, batch = dpo
    first = {k: v[[0, 4]] for k, v in batch.items()}
    four, _ = four_logps(lab, trainer, first)
    ours = losses.cdpo_loss(*four, beta=BETA, label_smoothing=SMOOTHING)
    assert_same(lab, trainer.model, ours, trl_dpo_loss(trainer, "aot", first))
    assert abs(ours - trl_dpo_loss(trainer, "sigmoid", first)) > 1e-3


def test_ipo_on_sums_is_the_papers_and_not_trls(lab, dpo):
    """Eq. 17 has log-probs of whole replies, TRL their averages over tokens: with one length for all, tau makes up."""
    trainer, batch = dpo
    four, (chosen_lengths, rejected_lengths) = four_logps(lab, trainer, batch)
    theirs = trl_dpo_loss(trainer, "ipo", batch)
    by_hand = ((four[0] - four[2]) - (four[1] - four[3]) - 1 / (2 * BETA)).square().mean()
    close(losses.ipo_loss(*four, BETA), by_hand, lab.tolerance)
    assert abs(losses.ipo_loss(*four, BETA) - theirs) > 0.1
    length = torch.full_like(chosen_lengths, 7)
    averaged = losses.ipo_loss(*four, BETA, length, length)
    close(averaged * 7**2, losses.ipo_loss(*four, BETA / 7), lab.tolerance)


def test_sft_loss_in_the_dpo_trainer(lab, dpo):
    trainer, batch = dpo
    ids, attention_mask, mask = (batch[k].chunk(2)[0] for k in ("input_ids", "attention_mask", "completion_mask"))
    ours = losses.sft_loss(trainer.model(ids, attention_mask=attention_mask).logits, ids, mask)
    assert_same(lab, trainer.model, ours, trl_dpo_loss(trainer, "sft", batch))


# ---- SFT, reward, KTO ----


def test_sft_loss(lab):
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in lab.rows]
    model = copy.deepcopy(lab.model)
    trainer, batch = build(lab, SFTTrainer, SFTConfig, rows, model, completion_only_loss=True)
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    ids, labels = batch["input_ids"], batch["labels"]
    assert (labels == -100).any() and (labels[:, 1:] != -100).any(dim=1).all()
    ours = losses.sft_loss(model(ids, attention_mask=batch["attention_mask"]).logits, labels, labels != -100)
    assert_same(lab, trainer.model, ours, theirs)


def test_reward_loss_with_and_without_margin(lab):
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(0)  # the score head is new
    model = AutoModelForSequenceClassification.from_pretrained(
        TINY_LLAMA, num_labels=1, dtype=next(lab.model.parameters()).dtype
    )
    model.score.weight.data.mul_(20)  # rewards that differ
    rows = [{**row, "margin": 0.5 * i} for i, row in enumerate(lab.rows)]
    trainer, batch = build(lab, RewardTrainer, RewardConfig, rows, model)
    margin = batch["margin"]
    for keys in ("input_ids", "attention_mask"), ("input_ids", "attention_mask", "margin"):
        theirs = trainer.compute_loss(trainer.model, {k: batch[k] for k in keys})
        scores = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
        ours = losses.reward_loss(*scores.chunk(2), **({"margin": margin} if "margin" in keys else {}))
        assert_same(lab, trainer.model, ours, theirs)
    assert margin.max() > 0


def test_kto_loss(lab):
    from trl import KTOConfig, KTOTrainer

    rows = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row, name in zip(lab.rows, ("chosen", "rejected", "chosen", "chosen"), strict=True)
    ]
    models = copy.deepcopy(lab.model), copy.deepcopy(lab.reference)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    trainer, batch = build(lab, KTOTrainer, KTOConfig, rows, *models, beta=BETA, **weights)
    theirs = trainer._compute_loss(trainer.model, dict(batch), False)
    others = {k: batch[f"KL_{k}"] for k in ("input_ids", "attention_mask", "completion_mask")}
    with torch.no_grad():
        ref = logps(lab.reference, batch, batch["completion_mask"])
        of_others = [logps(m, others, others["completion_mask"]) for m in (trainer.model, lab.reference)]
    kl = losses.kto_kl(*of_others)
    assert kl > 0
    policy = logps(trainer.model, batch, batch["completion_mask"])
    ours = losses.kto_loss(policy, ref, batch["label"], kl, BETA, **weights)
    assert_same(lab, trainer.model, ours, theirs)


# ---- without a reference ----


def labels_logps(model, batch, name):
    """Summed log-probs and lengths of TRL's older batches, whose chosen and rejected replies are padded apart."""
    ids, labels = batch[f"{name}_input_ids"], batch[f"{name}_labels"]
    logits = model(ids, attention_mask=batch[f"{name}_attention_mask"]).logits
    return losses.sequence_logps(logits, labels, labels != -100), (labels[:, 1:] != -100).sum(dim=1), logits


@pytest.mark.filterwarnings("ignore")  # trl.experimental says on import that it is experimental
def test_orpo_loss(lab):
    """The odds ratio is one and the same. In the SFT term TRL counts the prompt, and tokens over the whole batch; the
    paper's, and ours, is the chosen reply's."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trainer, batch = build(lab, ORPOTrainer, ORPOConfig, lab.rows, copy.deepcopy(lab.model), beta=BETA)
    theirs, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    chosen, chosen_lengths, logits = labels_logps(trainer.model, batch, "chosen")
    rejected, rejected_lengths, _ = labels_logps(trainer.model, batch, "rejected")
    four = chosen, rejected, chosen_lengths, rejected_lengths
    whole = losses.sft_loss(logits, batch["chosen_input_ids"], batch["chosen_attention_mask"])
    assert_same(lab, trainer.model, whole + BETA * losses.orpo_odds_ratio_loss(*four), theirs)
    ours = losses.orpo_loss(*four, BETA)
    reply = -(chosen / chosen_lengths).mean()
    close(ours - reply, theirs - whole, lab.tolerance)
    assert abs(ours - theirs) > 0.01


@pytest.mark.filterwarnings("ignore")
def test_simpo_loss(lab):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    settings = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0}
    trainer, batch = build(lab, CPOTrainer, CPOConfig, lab.rows, copy.deepcopy(lab.model), **settings)
    theirs, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    chosen, chosen_lengths, _ = labels_logps(trainer.model, batch, "chosen")
    rejected, rejected_lengths, _ = labels_logps(trainer.model, batch, "rejected")
    ours = losses.simpo_loss(chosen, rejected, chosen_lengths, rejected_lengths, beta=2.0, gamma=0.5)
    assert_same(lab, trainer.model, ours, theirs)
