"""RLHF against DPO: what is counted, weighed and spread, against hand counts, enumerated worlds and the textbook."""

import json
import runpy
import types

import numpy as np
import pytest
from scipy import stats

from rlhf_lab import shares, versus
from rlhf_lab.errors import UserError
from rlhf_lab.lab import as_text
from rlhf_lab.profiles import REPO_ROOT, get_profile

BENCH = runpy.run_path(str(REPO_ROOT / "bench" / "record_versus.py"))

SOURCE = '''
@decorated  # 1
def add(a, b):  # 2
    """A docstring
    of two lines."""
    # a comment

    text = """a string
    that is no docstring"""  # 4
    return sum(  # 5
        [a, b]  # 6
    )  # 7


class Empty:  # 8
    """Only words."""
'''


def test_lines_of_code_leave_out_what_does_nothing():
    assert versus.lines_of_code(SOURCE) == 8
    assert versus.lines_of_code("    if True:\n        pass\n") == 2  # dented, as a method is
    assert versus.lines_of_code(versus.knobs) == 2


def test_what_is_counted_is_counted_once_and_is_all_of_the_algorithm():
    from rlhf_lab import losses, plain_dpo, returns
    from rlhf_lab.ppo.trainer import PPOTrainer

    for parts in versus.loops().values():
        sources = [source for part in parts.values() for source in part]
        assert len({source.__qualname__ for source in sources}) == len(sources)
    rlhf, dpo = ({source for part in parts.values() for source in part} for parts in versus.loops().values())
    assert {losses.ppo_policy_loss, losses.ppo_value_loss, losses.reward_loss, returns.gae, PPOTrainer.update} <= rlhf
    assert {losses.dpo_loss, plain_dpo.train} <= dpo
    lines = versus.lines_by_part()
    assert lines["DPO"]["loop"] == versus.lines_of_code(plain_dpo.train)
    assert 3 < sum(lines["RLHF"].values()) / sum(lines["DPO"].values()) < 5  # the lesson: about four times


def test_four_roles_on_one_base_are_what_the_shapes_say(tmp_path):
    from peft import get_peft_model

    from rlhf_lab.models import load_policy, load_reward_model, load_tokenizer, lora_config, save_adapter

    profile = get_profile("tiny")
    base = REPO_ROOT / profile.model
    judge = get_peft_model(load_reward_model(base, profile), lora_config(profile, "SEQ_CLS"))
    save_adapter(judge, load_tokenizer(base), base, tmp_path)
    lab = types.SimpleNamespace(
        profile=profile,
        policy=lambda _: load_policy(base, profile),
        reward=lambda: types.SimpleNamespace(path=tmp_path),
    )
    held = versus.weights_on_one_base(lab)
    config = load_policy(base, profile).config
    d, f, layers, r = config.hidden_size, config.intermediate_size, config.num_hidden_layers, profile.lora_r
    kv = config.num_key_value_heads * config.head_dim
    attention = layers * r * (2 * (d + d) + 2 * (d + kv))  # q and o; k and v
    mlp = layers * r * 3 * (d + f)
    assert held["policy"] == pytest.approx(4e-6 * (attention + mlp))
    assert held["value"] == held["reward"] == pytest.approx(4e-6 * (attention + d))  # and a head
    n_base = sum(p.numel() for p in load_policy(base, profile).parameters())
    assert held["base"] == pytest.approx(4e-6 * n_base)


def test_weights_held_by_hand():
    assert list(versus.weights_held(10.0, 1.0, 2.0, 3.0).values()) == [40.0, 16.0, 20.0, 10.0, 11.0]


# ---- spreads ----


def test_the_mean_over_seeds_is_students():
    values = [1.31, 1.52, 1.47]
    found = versus.mean_over_seeds(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert stats.t.ppf(0.975, 2) == pytest.approx(4.303, abs=1e-3)  # what the exercise says


def test_intervals_over_three_seeds_hold_the_truth_19_times_in_20():
    draws = np.random.default_rng(0).normal(2.0, 0.5, size=(2000, 3))
    means, spreads = [versus.mean_over_seeds(row) for row in draws], [versus.spread_over_seeds(row) for row in draws]
    assert np.mean([x.low < 2.0 < x.high for x in means]) == pytest.approx(0.95, abs=0.015)
    assert np.mean([x.low < 0.5 < x.high for x in spreads]) == pytest.approx(0.95, abs=0.015)
    assert spreads[0].low / spreads[0].value == pytest.approx(0.52, abs=0.005)
    assert spreads[0].high / spreads[0].value == pytest.approx(6.28, abs=0.01)
    normal = np.abs(draws.mean(1) - 2.0) < 1.96 * draws.std(1, ddof=1) / np.sqrt(3)
    assert np.mean(~normal) == pytest.approx(0.19, abs=0.02)  # "about one time in five"


def test_one_seed_has_no_spread():
    for function in (versus.mean_over_seeds, versus.spread_over_seeds):
        with pytest.raises(ValueError, match="at least 2 values, got 1"):
            function([1.0])


def test_the_spread_over_settings_by_hand():
    prompts = np.random.default_rng(0).normal(size=40)
    found = versus.spread_over_settings([prompts + 1.0, prompts + 2.0, prompts + 4.0])  # differ alike on every prompt
    assert found.reach.value == pytest.approx(3.0) and found.spread.value == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert found.reach.low == pytest.approx(3.0) and found.reach.high == pytest.approx(3.0)


# ---- the record ----


def made_up(seeds=(0, 1, 2)):
    """A record in which PPO gains 1.0 at KL 1 and DPO 0.5, from normal rewards of mean 0."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(20, 256))

    def run(what, knob, seed, gold, tokens):
        by_prompt = {"gold": gold + rewards.mean(1), "proxy": 2 * gold + rewards.mean(1), "kl": np.ones(20) / knob}
        costs = {"seconds": 9.0, "core_seconds": 5.0, "peak_mb": 700, "libraries_mb": 400}
        drawn = {"replies": tokens // 10, "tokens": tokens, "pairs": 0 if tokens else 96}
        known = {"noise": {"gold": 0.01}, "drawn": drawn, "curves": {}}
        return (
            {"what": what, "knob": knob, "seed": seed} | costs | known | {n: v.tolist() for n, v in by_prompt.items()}
        )

    return {
        "date": "2026-11-26", "machine": "one", "versions": {"torch": "2.13.0"}, "profile": "tiny",
        "defaults": {"ppo": 1.0, "dpo": 1.0},
        "sizes": {"prompts": 20, "samples": 256, "replies": 2, "settings": {}},
        "costs": {stage: {"seconds": 1, "core_seconds": 20.0, "peak_mb": 500, "libraries_mb": 400}
                  for stage in ("sft", "reward")},
        "reference": {name: np.rint(1000 * rewards).astype(int).tolist() for name in ("gold", "proxy")},
        "runs": [run(what, knob, seed, gold / knob + seed / 10, tokens) for knob in (1.0, 2.0) for seed in seeds
                 for what, gold, tokens in (("ppo", 1.0, 500), ("dpo", 0.5, 0))],
    }  # fmt: skip


@pytest.fixture
def record(tmp_path):
    def write(**how):
        path = tmp_path / "versus.json"
        path.write_text(BENCH["as_text"](made_up(**how)))
        return versus.Record(path)

    return write


def test_a_record_is_read_by_method_setting_and_seed(record):
    found = record()
    assert found.methods == ["ppo", "dpo"] and found.seeds == [0, 1, 2] and "seeds 0, 1, 2" in str(found)
    assert [knob for knob, _ in found.settings("dpo")] == [1.0, 2.0]
    assert found.mean("ppo", 1.0, "gold").mean() == pytest.approx(1.1, abs=0.05)
    assert found.cost("ppo", "core_seconds") == 5.0 and found.cost("reward", "core_seconds") == 20.0
    assert found.reference["gold"].std() == pytest.approx(1, abs=0.05)


def test_a_record_that_is_missing_is_said_with_the_command(tmp_path):
    with pytest.raises(UserError, match=r"nothing is recorded yet. Run python bench/record_versus.py"):
        versus.Record(tmp_path / "none.json")


def test_the_comparison_says_what_was_measured(record):
    found = record()
    front = shares.frontier(found.reference["gold"])
    rows = versus.comparison(found, front, {"base": 10.0, "policy": 1.0, "value": 1.0, "reward": 1.0})
    table = {name: cells for name, *cells in rows}
    assert table[""] == ["RLHF, PPO", "DPO"]
    assert table["stages"] == ["3: SFT, reward model, PPO", "2: SFT, DPO"]
    assert table["core-seconds after SFT"] == ["25", "5"]  # the reward model's 20 belong to RLHF
    assert table["peak MB over the libraries'"] == ["300", "300"]
    assert table["weights held, MB"] == ["13.0", "11.0"]
    assert table["tokens generated"] == ["500", "0"]
    # normal rewards: the frontier's gain is sqrt(2 KL), so at KL 1 PPO has 1.1 / 1.41
    assert float(table["share of the frontier"][0].split()[0]) == pytest.approx(1.1 / np.sqrt(2), abs=0.05)
    assert table["gold's spread over seeds"][0].startswith("0.10 [0.05, 0.63]")
    assert len({len(row) for row in rows}) == 1 and as_text(rows).count("\n") == len(rows) - 1


def test_one_seed_is_said_to_be_one(record):
    found = record(seeds=(0,))
    front = shares.frontier(found.reference["gold"])
    rows = versus.comparison(found, front, {"base": 1.0, "policy": 1.0})
    assert ("gold's spread over seeds", "one seed only", "one seed only") in rows


def test_a_knob_is_what_somebody_had_to_choose():
    assert versus.knobs({"beta": 0.1, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "logging_steps": 1}) == 3


def test_the_findings_name_the_winner_whoever_it_is(record, tmp_path):
    found = record()
    fronts = {name: shares.frontier(rewards) for name, rewards in found.reference.items()}
    said = versus.findings(found, fronts)
    assert "RLHF, PPO reaches 0.7" in said["nearest"] and said["nearest"].index("PPO") < said["nearest"].index("DPO")
    assert said["ahead"] == (
        "At the profile's settings RLHF, PPO has more gold than DPO: +0.50 [+0.50, +0.50], 0.00 nats nearer to SFT."
    )
    assert "RLHF, PPO 25, DPO 5." in said["cost"]
    assert "their intervals overlap" in said["seeds"]
    assert "RLHF, PPO 0.35" in said["settings"] and "RLHF, PPO's is the largest" in said["settings"]
    swapped = json.loads(json.dumps(found.found).replace('"what": "ppo"', '"what": "x"').replace('"what": "dpo"',
                         '"what": "ppo"').replace('"what": "x"', '"what": "dpo"'))  # fmt: skip
    other = tmp_path / "swapped.json"
    other.write_text(json.dumps(swapped))
    said = versus.findings(versus.Record(other), fronts)
    assert "RLHF, PPO has less gold than DPO: -0.50" in said["ahead"]
    assert said["nearest"].index("DPO reaches") < said["nearest"].index("PPO reaches")


def test_a_gap_that_prompts_do_not_show_is_not_called_one(record):
    found = record()
    for run in found.of("ppo"):
        run.gold[:] = found.mean("dpo", 1.0, "gold") + np.tile([0.5, -0.5], 10)
    fronts = {name: shares.frontier(rewards) for name, rewards in found.reference.items()}
    assert (
        "neither more nor less, as far as these prompts tell, gold than DPO" in versus.findings(found, fronts)["ahead"]
    )


def test_one_seed_compares_no_spreads(record):
    found = record(seeds=(0,))
    fronts = {name: shares.frontier(rewards) for name, rewards in found.reference.items()}
    assert versus.findings(found, fronts)["seeds"].startswith("Too few seeds are recorded")


# ---- what lesson 09 says of the record ----


@pytest.fixture(scope="module")
def recorded():
    found = versus.Record()
    return found, {name: shares.frontier(rewards) for name, rewards in found.reference.items()}


def shares_of(found, fronts, reward):
    return {
        (what, knob): shares.share(found.mean(what, knob, reward), found.mean(what, knob, "kl"), fronts[reward])
        for what in found.methods
        for knob, _ in found.settings(what)
    }


def test_the_record_is_whole_and_of_the_tiny_profile(recorded):
    found, _ = recorded
    assert found.methods == ["ppo", "dpo", "dpo+sft"] and 0 in found.seeds
    assert [len(list(found.settings(what))) for what in found.methods] == [4, 4, 4]
    tiny = get_profile("tiny")
    assert (found.default("ppo"), found.default("dpo+sft")) == (tiny.ppo["kl_coef"], tiny.dpo["beta"])
    assert found.found["sizes"] == BENCH["SIZES"] and set(found.found["costs"]) == {"sft", "reward"}


def test_no_policy_is_above_the_frontier_and_none_is_on_it(recorded):
    for reward in ("gold", "proxy"):
        got = shares_of(*recorded, reward)
        assert all(one.low < 1 for one in got.values())
        assert all(one.value < 1 for (what, knob), one in got.items() if knob == recorded[0].default(what))


def test_at_the_profiles_settings_dpo_with_its_sft_term_has_ppos_gold_nearer_to_sft(recorded):
    found, fronts = recorded
    gold, kl = (
        {what: found.mean(what, found.default(what), name) for what in ("ppo", "dpo+sft")} for name in ("gold", "kl")
    )
    assert abs(gold["dpo+sft"].mean() - gold["ppo"].mean()) < 0.2
    assert kl["ppo"].mean() - kl["dpo+sft"].mean() > 0.5
    got = {what: shares.share(gold[what], kl[what], fronts["gold"]) for what in gold}
    assert got["dpo+sft"].value > got["ppo"].value


def test_larger_knobs_hold_closer_to_sft(recorded):
    found, _ = recorded
    for what in found.methods:
        kls = [found.mean(what, knob, "kl").mean() for knob, _ in found.settings(what)]
        assert kls[0] > kls[-1] > 0, what


def test_best_of_n_is_near_the_frontier_of_the_score_and_less_near_that_of_gold(recorded):
    found, fronts = recorded
    for b in shares.best_of_n(found.reference, "proxy", (4, 16)):
        proxy, gold = (
            shares.share(b.rewards[name], np.full(len(b.rewards[name]), b.kl.value), fronts[name]).value
            for name in ("proxy", "gold")
        )
        assert proxy > 0.85 and gold < proxy
        assert b.kl.value == pytest.approx(b.bound, abs=0.02)  # replies hardly ever tie


def test_memory_at_this_size_is_activations_and_ppos_is_the_least(recorded):
    found, _ = recorded
    peaks = {what: found.cost(what, "peak_mb") for what in ("reward", "ppo", "dpo")}
    assert min(peaks, key=peaks.get) == "ppo" and peaks["ppo"] > found.cost("ppo", "libraries_mb") + 100


def test_the_score_goes_on_rising_with_n_where_gold_has_stopped(recorded):
    found, _ = recorded
    known = {b.n: {name: r.mean() for name, r in b.rewards.items()}
             for b in shares.best_of_n(found.reference, "proxy", (8, 32, 64))}  # fmt: skip
    assert known[64]["proxy"] > known[32]["proxy"] + 0.1 > known[8]["proxy"] + 0.2
    assert known[64]["gold"] < known[32]["gold"] + 0.02


def test_kl_a_token_puts_ppo_far_above_the_frontier(recorded):
    """The lesson's broken figure."""
    found, fronts = recorded
    for run in found.of("ppo"):
        got = shares.share(run.gold, run.kl / run.found["tokens_a_reply"], fronts["gold"])
        assert got.low > 1.5


# ---- the script ----


def test_only_what_is_missing_is_run_and_it_goes_where_it_belongs():
    empty = {"runs": [], "costs": {}, "reference": {}}
    jobs = BENCH["wanted"]([0, 1])
    assert BENCH["missing"](empty, jobs) == jobs and len(jobs) == 1 + 2 * 12 + 2
    assert jobs[0] == {"what": "reference"} and len({json.dumps(job) for job in jobs}) == len(jobs)
    for job in jobs[:5]:
        BENCH["add"](empty, job, job | {"found": 1})
    assert BENCH["missing"](empty, jobs) == jobs[5:]


def test_a_record_is_kept_a_line_for_each_list():
    text = BENCH["as_text"]({"a": [[1, 2], [3, 4]], "b": {"c": [0.5, 0.25]}})
    assert json.loads(text) == {"a": [[1, 2], [3, 4]], "b": {"c": [0.5, 0.25]}}
    assert "[1,2]" in text and "[0.5,0.25]" in text
