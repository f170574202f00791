"""A chat model in this process: a tiny one with random weights shows shapes and templates, not sense."""

from __future__ import annotations

import string

import numpy as np
import pytest

import anomalens as al
from anomalens.errors import MissingWeights
from anomalens.reasoning.endpoint import Message, Picture
from anomalens.reasoning.local import HFVisionChat
from anomalens.types import Sample, View

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}"
    "{{ p['text'] }}{% endif %}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A LLaVA of a few thousand weights that writes single characters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    names = ["<unk>", "<pad>", "<s>", "</s>", "<image>", *string.printable]
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    size = {"shortest_edge": 32}
    eye = transformers.CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    processor = transformers.LlavaProcessor(
        eye, tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )  # fmt: skip
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**small, num_hidden_layers=2, image_size=32, patch_size=8)
    text = transformers.LlamaConfig(**small, num_hidden_layers=1, num_key_value_heads=2, vocab_size=len(names))
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
    )
    path = tmp_path_factory.mktemp("llava")
    processor.save_pretrained(path)
    model.save_pretrained(path)
    return str(path)


def question(shade: int = 0) -> list[Message]:
    return [Message.of("user", "what?", Picture.of(np.full((40, 50, 3), shade, np.uint8)), "say")]


def test_it_answers_and_repeats_itself(folder):
    model = HFVisionChat(folder, device="cpu")
    first, again = (model.ask(question(), max_tokens=6, logprobs=True) for _ in range(2))
    assert first == again
    assert first.status == "truncated"  # random weights find no end
    assert first.usage["completion_tokens"] == 6
    assert first.usage["prompt_tokens"] > 16  # a token for each patch of the picture
    assert len(first.tokens) == 6
    for token in first.tokens:
        assert len(token.top) <= 5
        assert token.logprob == pytest.approx(max(token.top.values()))  # greedy: the likeliest


def test_seeds_draw_answers_apart(folder):
    model = HFVisionChat(folder, device="cpu")
    said = [model.ask(question(), temperature=2.0, seed=s, max_tokens=8).text for s in (0, 1, 0)]
    assert said[0] == said[2] != said[1]


def test_the_detector_takes_it(folder):
    detector = al.create("vlm", model=HFVisionChat(folder, device="cpu"), max_tokens=5, concurrency=2)
    samples = [Sample(str(i), {"image": View("image", lambda i=i: np.full((8, 8, 3), i, np.uint8))}) for i in range(3)]
    predictions = list(detector.predict(samples))
    assert [p.id for p in predictions] == ["0", "1", "2"]
    assert {p.verdict for p in predictions} == {"review"}
    assert "max_tokens" in predictions[0].reasons[0].text


def test_a_model_that_is_not_there(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with pytest.raises(MissingWeights, match="download=True"):
        HFVisionChat(str(tmp_path)).ask(question())
