"""You are the annotator: which of two replies is better, thirty times, and how far you agree with others.

pairs.py      what is shown: help-desk pairs of every kind, or pairs from anyone's prompts and replies
session.py    what is answered: kept after every key, with undo, skip and resume
agreement.py  what it says: Cohen's kappa with its interval, habits, and the kinds of pair one disagrees on
figures.py    its two figures; terminal.py and widget.py ask, in a terminal and in a notebook

from rlhf_lab.annotate.widget import AnnotationWidget    # in a lesson
$ rlhf-lab annotate --data replies.jsonl                 # in a terminal
"""

from rlhf_lab.annotate.agreement import ANNOTATORS, Report, agree, compare, kappa_interval, my_report
from rlhf_lab.annotate.pairs import Pair, helpdesk_pairs, read_pairs, spread
from rlhf_lab.annotate.session import Answer, Session, my_labels, my_session

__all__ = [
    "ANNOTATORS",
    "Answer",
    "Pair",
    "Report",
    "Session",
    "agree",
    "compare",
    "helpdesk_pairs",
    "kappa_interval",
    "my_labels",
    "my_report",
    "my_session",
    "read_pairs",
    "spread",
]
