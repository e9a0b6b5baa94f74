"""rlhf_lab: RLHF and DPO with Llama models, every claim measured against a known truth.

Importing the package is instant. torch and transformers load when a module that needs them is first used.
"""

__version__ = "0.1.0"
