"""Tiny real tokenizers and models, one of each family that tokenises differently."""

import inspect
import io
import textwrap
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import sentencepiece
import tiktoken
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertGenerationTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
)

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sample_text() -> str:
    """Some Python source, the same on every machine with this Python."""
    return inspect.getsource(inspect) + inspect.getsource(textwrap)


def _fast(tokenizer, bos=None):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token=bos, additional_special_tokens=SPECIALS[1:]
    )


@lru_cache
def byte_level(pattern=None, trim_offsets=False, bos=False, vocabulary=600):
    """GPT-2 style byte-level BPE (`pattern`: Llama-3 style splitting; `bos`: adds one, as Llama does)."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if pattern:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", *SPECIALS] if bos else SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([sample_text()], trainer)
    steps = [processors.ByteLevel(trim_offsets=True)] if trim_offsets else []
    if bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    if steps:
        tokenizer.post_processor = processors.Sequence(steps)
    return _fast(tokenizer, "<s>" if bos else None)


@lru_cache
def _sentencepiece_model():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample_text().split("\n")),
        model_writer=model,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path = Path(mkdtemp()) / "spiece.model"
    path.write_bytes(model.getvalue())
    return path


@lru_cache
def sentencepiece_slow():
    """SentencePiece with byte fallback, through the library itself: no offsets."""
    return BertGenerationTokenizer(vocab_file=str(_sentencepiece_model()))


@lru_cache
def sentencepiece_fast():
    """The same model as a fast tokenizer, as Llama-2's is built."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(_sentencepiece_model()))
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[259:]
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    merges.sort(key=lambda pair: vocabulary["".join(pair)])
    bpe = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", bos_token="<s>")


class TiktokenStyle(PreTrainedTokenizer):
    """A slow tokenizer around tiktoken whose tokens are raw bytes, as several model repositories ship."""

    def __init__(self, encoding, **kwargs):
        self.encoding = encoding
        self.names = {index: token for token, index in encoding._mergeable_ranks.items()}
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return len(self.names)

    def get_vocab(self):
        return {token: index for index, token in self.names.items()} | self.added_tokens_encoder

    def _tokenize(self, text, **kwargs):
        return [self.names[i] for i in self.encoding.encode_ordinary(text)]

    def tokenize(self, text, **kwargs):
        return self._tokenize(text)

    def _convert_token_to_id(self, token):
        return self.encoding._mergeable_ranks[token]

    def _convert_id_to_token(self, index):
        return self.names.get(index)

    def convert_tokens_to_ids(self, tokens):
        return [self._convert_token_to_id(t) for t in tokens]


@lru_cache
def tiktoken_style():
    """Raw-bytes BPE without offsets; ranks learned here."""
    ranks = {bytes([b]): b for b in range(256)}
    fast = byte_level()
    from hesnr_tasks.trajectory.alignment import _ALPHABET

    for token, _ in sorted(fast.get_vocab().items(), key=lambda pair: pair[1]):
        if token not in SPECIALS:
            ranks.setdefault(bytes(_ALPHABET[c] for c in token), len(ranks))
    encoding = tiktoken.Encoding("tiny", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    return TiktokenStyle(encoding)


@lru_cache
def lower_casing():
    """A tokenizer that rewrites text and has unknown words: it cannot round-trip."""
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece({"[UNK]": 0, "def": 1, "f": 2, "return": 3, "x": 4, ":": 5}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


FAMILIES = {
    "byte-level": byte_level,
    "byte-level, trimmed offsets": lambda: byte_level(trim_offsets=True),
    "byte-level, llama-3 splitting, bos": lambda: byte_level(LLAMA3, bos=True),
    "sentencepiece, fast": sentencepiece_fast,
    "sentencepiece, slow": sentencepiece_slow,
    "tiktoken, slow": tiktoken_style,
}


def llama(folder: str, *, seed: int = 0, steps: int = 0, max_length: int = 32768, tokenizer=byte_level) -> str:
    """A Llama with `tokenizer`, saved to `folder`: random, or after a few `steps` on Python source."""
    _llama(seed, steps, max_length, tokenizer).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@lru_cache
def _llama(seed, steps, max_length, tokenizer):
    """Made once for all tests of a process that want the same."""
    torch.manual_seed(seed)
    vocabulary = tokenizer()
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_length,
        initializer_range=0.05 if steps else 0.3,
        tie_word_embeddings=True,
        bos_token_id=vocabulary.bos_token_id,
        eos_token_id=vocabulary.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    if steps:
        _train(model, torch.tensor(vocabulary(sample_text(), verbose=False)["input_ids"]), steps)
    return model


def _train(model, ids, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - 129, (8,))
        batch = torch.stack([ids[start : start + 128] for start in starts.tolist()])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
