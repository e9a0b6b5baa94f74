"""The help-desk language: a world small enough that the true reward of every reply can be read off.

message, reply = "Hey, my kettle stopped working ...", "Hi there! I will send you a new kettle today."
gold_breakdown(message, reply)   # {"helpfulness": 1.0, "tone": 0.3, ...}
"""

from rlhf_lab.helpdesk.annotators import Annotator, agreement
from rlhf_lab.helpdesk.gold import ATTRIBUTES, gold_breakdown, gold_reward
from rlhf_lab.helpdesk.grammar import Agent, Ticket, draw_ticket, read_message, read_reply, write_message, write_reply

__all__ = [
    "ATTRIBUTES",
    "Agent",
    "Annotator",
    "Ticket",
    "agreement",
    "draw_ticket",
    "gold_breakdown",
    "gold_reward",
    "read_message",
    "read_reply",
    "write_message",
    "write_reply",
]
