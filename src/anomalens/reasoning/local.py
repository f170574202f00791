"""A vision chat model inside this process, by the transformers library, for those who run no server.

create("vlm", model=HFVisionChat("models/Qwen2.5-VL-7B-Instruct"))
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MissingExtra, MissingWeights
from .endpoint import TOP, Answer, Message, Picture, Token


@dataclass
class HFVisionChat:
    """Any model that transformers loads as image-text-to-text, with the chat template of its processor.

    name: a folder, or a repository that is already in the cache of the Hugging Face hub; only download=True fetches it.
    device: auto takes a GPU where there is one. dtype: auto is that of the file, or bfloat16, float16, float32.

    It is loaded at the first question, and answers one after the other, with token probabilities. Safe in threads.
    """

    name: str
    device: str = "auto"
    dtype: str = "auto"
    max_tokens: int = 512
    download: bool = False
    concurrency: int = 1

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    def ask(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        json: bool = False,
        logprobs: bool = False,
    ) -> Answer:
        """One answer; greedy at temperature 0. json: no local model can be forced, so it changes nothing.

        Raises:
            MissingExtra: torch or transformers is not installed. MissingWeights: the model is not on this machine.
        """
        with self._lock:
            processor, model = self._load()
            import torch

            chat = [{"role": m.role, "content": [_part(p) for p in m.parts]} for m in messages]
            inputs = processor.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(model.device)
            for key, value in inputs.items():
                if value.is_floating_point():
                    inputs[key] = value.to(model.dtype)
            limit = max_tokens or self.max_tokens
            how: dict[str, Any] = {"max_new_tokens": limit, "do_sample": temperature > 0}
            if temperature > 0:
                how |= {"temperature": temperature, **({"top_p": top_p} if top_p is not None else {})}
            with torch.random.fork_rng(), torch.inference_mode():
                if seed is not None:
                    torch.manual_seed(seed)
                made = model.generate(**inputs, **how, return_dict_in_generate=True, output_logits=logprobs)
            prompt = inputs["input_ids"].shape[1]
            ids = made.sequences[0, prompt:]
            text = processor.decode(ids, skip_special_tokens=True)
            tokens = _tokens(processor, ids, made.logits) if logprobs else ()
            usage = {"prompt_tokens": prompt, "completion_tokens": len(ids)}
            ends = model.generation_config.eos_token_id
            ended = len(ids) < limit or int(ids[-1]) in (ends if isinstance(ends, list) else [ends])
        if not ended:
            return Answer(text, "truncated", "the answer was cut at max_tokens; raise max_tokens.", "length", usage,
                          tokens, self.name)  # fmt: skip
        return Answer(text, finish_reason="stop", usage=usage, tokens=tokens, model=self.name)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is not None:
            return self._loaded
        try:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError:
            raise MissingExtra(
                "a local chat model needs: pip install 'anomalens[torch]' 'transformers>=4.56'."
            ) from None
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            processor = AutoProcessor.from_pretrained(self.name, local_files_only=not self.download)
            model = AutoModelForImageTextToText.from_pretrained(
                self.name, dtype=self.dtype, local_files_only=not self.download
            )
        except (OSError, ValueError) as error:
            raise MissingWeights(
                f"no vision chat model could be loaded from {self.name} ({' '.join(str(error).split())[:120]}); give a "
                "folder with its files, or download=True to fetch it from the Hugging Face hub."
            ) from None
        self._loaded = processor, model.to(device).eval()
        return self._loaded


def _part(part: str | Picture) -> dict[str, Any]:
    from PIL import Image

    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": Image.open(io.BytesIO(part.data)).convert("RGB")}


def _tokens(processor: Any, ids: Any, logits: Any) -> tuple[Token, ...]:
    """The tokens with the log-probabilities of their likeliest alternatives."""
    found = []
    for id, step in zip(ids.tolist(), logits, strict=True):
        logs = step[0].float().log_softmax(-1)
        top = logs.topk(min(TOP, len(logs)))
        names = {processor.decode([i]): float(v) for v, i in zip(top.values, top.indices.tolist(), strict=True)}
        found.append(Token(processor.decode([id]), float(logs[id]), names))
    return tuple(found)
