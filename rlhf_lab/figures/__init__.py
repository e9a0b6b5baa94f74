"""Every figure of the report and the lessons: data in, matplotlib Figure out, nothing else touched.

`base` is how a figure looks, shows itself and is saved; `report` what a run measured. The figures that a slider moves
build on `live`: `comparisons` (lesson 02), `policy_gradient` (03), `optimum` (04); `training` and
`plain` draw curves over steps.
"""

from rlhf_lab.figures.base import (
    ERROR_BARS,
    FAINT,
    INK,
    LOOKS,
    STYLE,
    LabFigure,
    Look,
    alt_text,
    look,
    save,
    to_png,
)
from rlhf_lab.figures.comparisons import bradley_terry_curve, elo_curves, fitted_rewards
from rlhf_lab.figures.live import LiveFigure
from rlhf_lab.figures.optimum import coverage_endpoints, dpo_curves, optimal_policy_bars
from rlhf_lab.figures.policy_gradient import clipped_surrogate, gae_bars, kl_estimators, ratio_drift
from rlhf_lab.figures.report import (
    calibration,
    gold_by_attribute,
    kl_and_reward,
    learning_curves,
    lengths,
    stage_costs,
    win_rates,
)
from rlhf_lab.figures.training import training_curves

__all__ = [
    "ERROR_BARS",
    "FAINT",
    "INK",
    "LOOKS",
    "STYLE",
    "LabFigure",
    "LiveFigure",
    "Look",
    "alt_text",
    "bradley_terry_curve",
    "calibration",
    "clipped_surrogate",
    "coverage_endpoints",
    "dpo_curves",
    "elo_curves",
    "fitted_rewards",
    "gae_bars",
    "gold_by_attribute",
    "kl_and_reward",
    "kl_estimators",
    "learning_curves",
    "lengths",
    "look",
    "optimal_policy_bars",
    "ratio_drift",
    "save",
    "stage_costs",
    "to_png",
    "training_curves",
    "win_rates",
]
