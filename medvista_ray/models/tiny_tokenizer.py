"""The tokenizer of the tiny policy: byte-level BPE in which every number 0..999 is ONE token.

A small model reads and copies a number that is one token within minutes and a digit string only within hours, so digit
merges come first and whole. The protocol's tags are added tokens (not special: they stay in decoded text). Called by the
script that pre-trains the base, and by tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<video>",
)
PROTOCOL_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>")
# A number is split off whole (up to three digits), a word takes its leading space, punctuation takes its trailing one.
SPLIT_PATTERN = r"\p{N}{1,3}| ?\p{L}+|[^\s\p{L}\p{N}]+ ?|\s+"
DIGITS = "0123456789"


def build_tiny_tokenizer(corpus: Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Train the tokenizer on `corpus`; at most `vocab_size` entries, numbers and special tokens included."""
    num_numbers = 10**2 + 10**3
    num_added = len(SPECIAL_TOKENS) + len(PROTOCOL_TAGS)
    words = _new_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - num_numbers - num_added,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator((_without_digits(text) for text in corpus), trainer)
    tokenizer = _with_numbers(words)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in PROTOCOL_TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def _new_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_numbers(words: Tokenizer) -> Tokenizer:
    """The same BPE with the merges of all two- and three-digit numbers put first."""
    model = json.loads(words.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    number_merges = [(a, b) for a, b in product(DIGITS, DIGITS)]
    # Whichever two digits are joined first (the pair of lower rank), the third joins them.
    number_merges += [(a + b, c) for a, b, c in product(DIGITS, DIGITS, DIGITS)]
    number_merges += [(a, b + c) for a, b, c in product(DIGITS, DIGITS, DIGITS)]
    for left, right in number_merges:
        vocab.setdefault(left + right, len(vocab))
    word_merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = _new_tokenizer()
    tokenizer.model = models.BPE(vocab=vocab, merges=number_merges + word_merges)
    return tokenizer


def _without_digits(text: str) -> str:
    return "".join(" " if character in DIGITS else character for character in text)
