"""Checks on models and machines that cost nothing, made before anything heavy loads.

Each raises a UserError of one line (what, where, what to do) or returns. Only what a check needs is imported: torch by
check_profile_machine, transformers by none.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from rlhf_lab.errors import UserError
from rlhf_lab.profiles import REPO_ROOT, Profile

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SAMPLE_CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]


def check_model_dir(path_or_id: str | Path, head: str = "ForCausalLM") -> dict[str, Any] | None:
    """The config of the Llama in a local folder, or None for a hub id, which has nothing here to look at.

    A relative path counts from here, then from the repo. Raises UserError when the folder is missing, is not a Llama,
    has another head than `head` ("ForCausalLM"; "ForSequenceClassification" for a reward model), has broken weights or
    only pickled ones, or has no tokenizer.
    """
    folder = _local_folder(path_or_id)
    if folder is None:
        return None
    config = _read_config(folder)
    _check_architecture(config, folder, head)
    _check_weights(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(
            "no tokenizer (tokenizer.json or tokenizer.model)",
            where=str(folder),
            fix="Save it beside the model with tokenizer.save_pretrained",
        )
    return config


def check_tokenizer(tokenizer, where: str, for_chat: bool = True) -> None:
    """Refuse a tokenizer that would spoil training without a word. `where` is the model's name for the message.

    Raises UserError when eos is missing; when pad is missing or is eos; with `for_chat`, when there is no chat template
    or a rendered conversation does not begin with exactly one BOS. A tokenizer without BOS passes; so does a BOS that
    comes again at later turns, as Llama 2's <s> and SmolLM2's <|im_start|> do.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no eos token, so no reply can end", where=where, fix="Set tokenizer.eos_token"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        what = "is missing" if tokenizer.pad_token_id is None else f"is the eos token ({tokenizer.eos_token})"
        raise UserError(
            f"the pad token {what}: padding and eos cannot be told apart, so generation never learns to stop and a "
            "Llama 3 reward model scores the wrong token and never learns",
            where=where,
            fix="Set tokenizer.pad_token to a token that text never holds, such as " + _spare_token(tokenizer),
        )
    if not for_chat:
        return
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template",
            where=where,
            fix="Use the model's -Instruct or -Chat version, or set tokenizer.chat_template",
        )
    _check_one_bos(tokenizer, where)


def check_lengths(config: Any, max_length: int, where: str = "--max-length") -> None:
    """Raise UserError when sequences of `max_length` tokens exceed the model's positions.

    `config` is a dict (as check_model_dir returns) or a transformers config.
    """
    read = config.get if isinstance(config, Mapping) else lambda name: getattr(config, name, None)
    longest = read("max_position_embeddings")
    if longest is not None and max_length > longest:
        raise UserError(
            f"{max_length} tokens are too long for the model, which has {longest} positions",
            where=where,
            fix=f"Ask for at most {longest}",
        )


def check_disk(path: str | Path, needed_mb: float) -> None:
    """Raise UserError when the disk that will hold `path` (which need not exist yet) has less than `needed_mb` free."""
    parent = Path(path).expanduser().absolute()
    while not parent.exists():
        parent = parent.parent
    free_mb = shutil.disk_usage(parent).free / 2**20
    if free_mb < needed_mb:
        raise UserError(
            f"no disk space, {free_mb:,.0f} MB free and {needed_mb:,.0f} MB needed",
            where=str(path),
            fix="Free some space or choose another folder",
        )


def check_profile_machine(profile: Profile) -> None:
    """Raise UserError when this machine cannot run the profile: no GPU, no bitsandbytes, no bfloat16 in hardware."""
    import torch

    where = f"profile {profile.name}"
    gpu = torch.cuda.is_available()
    if profile.needs_gpu and not gpu:
        raise UserError(
            "needs a GPU and this machine shows none", where=where, fix="Use --profile tiny or smol, or a Colab GPU"
        )
    if profile.quantisation == "nf4" and (reason := why_no_bitsandbytes()):
        raise UserError(
            f"4-bit weights need bitsandbytes, which does not import ({reason})",
            where=where,
            fix="pip install bitsandbytes, or choose a profile without quantisation",
        )
    if profile.dtype == "bfloat16":
        # Without the argument a T4 answers yes: it emulates bf16, many times slower.
        if gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name()
            raise UserError(f"bfloat16 is not in the hardware of this GPU ({name})", where=where, fix="Use float16")
        if not gpu:
            raise UserError("bfloat16 on a CPU is up to 30 times slower", where=where, fix="Use float32")


@cache
def why_no_bitsandbytes() -> str:
    """Why bitsandbytes cannot be imported, in one line; "" when it can."""
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # a CUDA mismatch surfaces as RuntimeError or OSError, not only as ImportError
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


# --- parts --------------------------------------------------------------------------------------------------------


def _local_folder(path_or_id: str | Path) -> Path | None:
    text = str(path_or_id)
    given = Path(text).expanduser()
    for folder in (given, REPO_ROOT / given):
        if folder.is_dir():
            return folder
        if folder.exists():
            raise UserError("is a file, not a model folder", where=text, fix="Name the folder that holds config.json")
    first = given.parts[0] if given.parts else ""
    looks_local = (
        not HUB_ID.fullmatch(text) or first in ("runs", "data") or (len(given.parts) > 1 and Path(first).is_dir())
    )
    if isinstance(path_or_id, Path) or looks_local:
        raise UserError("no such model folder", where=text, fix="Check the path, or name a hub id such as owner/name")
    return None


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                "holds a LoRA adapter, not a model", where=str(folder), fix="Merge it into its base and save that"
            )
        raise UserError("no config.json", where=str(folder), fix="Name a folder written by save_pretrained")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"broken config ({error})", where=str(file), fix="Save or download the model again") from None
    if not isinstance(config, dict):
        raise UserError("broken config (not an object)", where=str(file), fix="Save or download the model again")
    return config


def _check_architecture(config: dict[str, Any], folder: Path, head: str) -> None:
    kind = config.get("model_type")
    if kind != "llama":
        raise UserError(
            f"not a Llama, its model_type is {kind!r}",
            where=str(folder / "config.json"),
            fix="Name a model whose model_type is 'llama'",
        )
    architectures = config.get("architectures") or []
    if not any(str(name).endswith(head) for name in architectures):
        is_causal = head == "ForCausalLM"
        raise UserError(
            f"not a {'causal language model' if is_causal else head}, its architectures are {architectures}",
            where=str(folder / "config.json"),
            fix=f"Name a folder saved from Llama{head}",
        )


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    present = {file.name: file for file in folder.glob("*.safetensors")}
    if index.is_file():
        try:
            wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError("broken index", where=str(index), fix="Save or download the model again") from None
        if missing := sorted(wanted - set(present)):
            raise UserError(
                f"{len(missing)} of {len(wanted)} weight files are missing ({missing[0]})",
                where=str(folder),
                fix="Finish the download",
            )
    if not present:
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"weights only as pickle ({pickles[0]}), and no pickle is loaded: it can run any code",
                where=str(folder),
                fix="Convert it where you trust it: load with transformers, save_pretrained writes safetensors",
            )
        raise UserError("no weights (*.safetensors)", where=str(folder), fix="Save or download the model again")
    for file in present.values():
        _check_safetensors(file)


def _check_safetensors(file: Path) -> None:
    """Read the header only: cut downloads and Git LFS pointers show there."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"broken weights ({error})", where=str(file), fix="Save or download the model again (`git lfs pull`?)"
        ) from None


def _spare_token(tokenizer) -> str:
    vocabulary = tokenizer.get_vocab()
    known = ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<pad>", "<|endoftext|>", "<unk>")
    return next((token for token in known if token in vocabulary and token != tokenizer.eos_token), known[0])


def _check_one_bos(tokenizer, where: str) -> None:
    try:
        ids = tokenizer.apply_chat_template(SAMPLE_CHAT, tokenize=True, return_dict=True)["input_ids"]
    except Exception as error:  # jinja raises what it likes, a template's own raise_exception among it
        raise UserError(f"the chat template fails ({error})", where=where, fix="Mend tokenizer.chat_template") from None
    bos = tokenizer.bos_token_id
    if bos is None:
        return
    leading = next((i for i, token in enumerate(ids) if token != bos), len(ids))
    if leading != 1:
        count = "no BOS" if leading == 0 else f"{leading} BOS"
        raise UserError(
            f"a rendered conversation begins with {count} ({tokenizer.bos_token}) instead of one",
            where=where,
            fix="Let the chat template write it once, at its head, and tokenize with add_special_tokens=False",
        )
