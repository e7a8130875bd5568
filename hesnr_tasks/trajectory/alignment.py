"""From labelled text to tokens (`Encoder`): which characters each token covers, and so which labels and turn it has.

Tokens are aligned by their *bytes*: the bytes of all tokens, joined, must equal the text's UTF-8 exactly, so the
alignment proves itself on every text, works alike for fast and slow tokenizers, and does not suffer from offsets that
some fast tokenizers trim. Where a tokenizer rewrites text (lower-casing, Unicode normalisation) the joined bytes differ
and its own offsets are used.

Text is tokenised once, as a whole, so that no token is split at a segment's border. A special-token string in content
(`<|im_end|>` in a log, say) must not become a control token: the text is split inside such a string, so that the
tokenizer does not recognise it. Only spans marked `control` (ChatML and template markers) keep theirs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import ScoringError
from hesnr_tasks.trajectory.rendering import Rendered

IntArray = npt.NDArray[np.int32]


class Encoded(NamedTuple):
    """Token ids, shape (n,), and for each the characters `start` to `end` it covers (equal: none, as of BOS)."""

    ids: IntArray
    start: IntArray
    end: IntArray
    lost: int  # characters the tokenizer cannot represent (under an unknown token, or under none)


class Encoder:
    """Tokenises rendered texts with one tokenizer (Hugging Face interface, fast or slow).

    Args:
        tokenizer: `transformers` tokenizer, or another with its interface.
        bos: force (True) or forbid (False) a beginning-of-sequence token; None: as the tokenizer itself does.
    """

    def __init__(self, tokenizer: Any, bos: bool | None = None) -> None:
        self.tokenizer = tokenizer
        self._bos = bos

    def encode(self, rendered: Rendered) -> Encoded:
        """Tokenise a text; special-token strings in content stay text.

        Raises:
            ScoringError: the tokens cannot be aligned with characters, or content became a control token.
        """
        parts, prefix, offset = [], self.prefix, 0
        bos = self.tokenizer.bos_token
        if prefix and bos and rendered.spans and rendered.spans[0].control and rendered.text.startswith(str(bos)):
            prefix = ()  # a template has written it
        for piece in self._pieces(rendered):
            ids, start, end, lost = self._encode_inner(piece) if offset else self._encode_piece(piece)
            parts.append(Encoded(ids, start + np.int32(offset), end + np.int32(offset), lost))
            offset += len(piece)
        lead = np.zeros(len(prefix), dtype=np.int32)
        encoded = Encoded(
            np.concatenate([np.asarray(prefix, dtype=np.int32), *(p.ids for p in parts)]),
            np.concatenate([lead, *(p.start for p in parts)]),
            np.concatenate([lead, *(p.end for p in parts)]),
            sum(p.lost for p in parts),
        )
        self._refuse_injected_control(rendered, encoded)
        return encoded

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """Ids put before every text (usually BOS or nothing)."""
        if self._bos is False:
            return ()
        bare = list(self.tokenizer("a", add_special_tokens=False)["input_ids"])
        full = list(self.tokenizer("a")["input_ids"])
        prefix = next((full[:i] for i in range(len(full)) if full[i : i + len(bare)] == bare), [])
        if self._bos and not prefix:
            if self.tokenizer.bos_token_id is None:
                raise ScoringError("add_bos_token=True, but this tokenizer has no BOS token; leave the setting out")
            prefix = [self.tokenizer.bos_token_id]
        return tuple(prefix)

    def token_bytes(self) -> list[bytes | None]:
        """The UTF-8 bytes of each token id, a place an id; a token may be part of a character.

        Returns:
            None in the place of a token whose bytes are not known.
        """
        probe = "def f(x):\n    return x"
        ids = np.asarray(self.tokenizer(probe, add_special_tokens=False)["input_ids"], dtype=np.int32)
        for scheme, table in self._tables:
            if _spans_by(scheme, table, probe, ids) is not None:
                space = scheme.text(" ").encode()
                return [None if token is None else token.replace(space, b" ") for token in table]
        return [self.tokenizer.decode([i]).encode() for i in range(len(self.tokenizer))]

    # --- special tokens ---------------------------------------------------------------------------------------------

    @cached_property
    def _specials(self) -> dict[str, int]:
        decoder = getattr(self.tokenizer, "added_tokens_decoder", {})
        added = {str(token): index for index, token in decoder.items() if getattr(token, "special", True)}
        names = [str(t) for t in self.tokenizer.all_special_tokens]
        return {**dict(zip(names, self.tokenizer.all_special_ids, strict=True)), **added}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        names = sorted((s for s in self._specials if s), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    def _pieces(self, rendered: Rendered) -> Iterator[str]:
        """The text, split inside special-token strings that are content (or straddle content and markers)."""
        text, start, position = rendered.text, 0, 0
        control = [(span.start, span.end) for span in rendered.spans if span.control]
        control_starts = np.array([first for first, _ in control], dtype=np.int64)
        while self._special_pattern and (match := self._special_pattern.search(text, position)):
            index = int(np.searchsorted(control_starts, match.start(), side="right")) - 1
            if index >= 0 and match.end() <= control[index][1]:
                position = match.end()
            else:
                position = match.start() + 1
                yield text[start:position]
                start = position
        if start < len(text):
            yield text[start:]

    def _refuse_injected_control(self, rendered: Rendered, encoded: Encoded) -> None:
        special = np.isin(encoded.ids, list(self._specials.values()))
        special &= encoded.end > encoded.start
        unknown = self.tokenizer.unk_token_id
        if unknown is not None:
            special &= encoded.ids != unknown
        for index in np.flatnonzero(special):
            start, end = int(encoded.start[index]), int(encoded.end[index])
            if not any(s.control and s.start <= start and end <= s.end for s in rendered.spans):
                raise ScoringError(
                    f"the tokenizer turned {rendered.text[start:end]!r} at character {start} of the text into the "
                    f"control token {int(encoded.ids[index])}; content must never do that. Use a fast tokenizer."
                )

    # --- characters of tokens ---------------------------------------------------------------------------------------

    def _encode_inner(self, text: str) -> Encoded:
        """Tokens of a piece that does not begin the text: without the space some tokenizers put before a text.

        Such a tokenizer reads the piece after a character that no token joins with it, whose tokens are left out.
        """
        encoded = self._encode_piece(text)
        if not self._adds_space(encoded.ids, text):
            return encoded
        for guard in _GUARDS:
            whole = self._encode_piece(guard + text)
            first = int(np.count_nonzero(whole.end <= len(guard)))
            ids, start, end = (values[first:] for values in whole[:3])
            if (start >= len(guard)).all() and len(ids) and not self._adds_space(ids, text):
                lost = whole.lost - self._encode_piece(guard).lost
                return Encoded(ids, start - np.int32(len(guard)), end - np.int32(len(guard)), lost)
        raise ScoringError(
            f"{type(self.tokenizer).__name__} puts a space before every piece of text, also inside of one, at the "
            f"special-token string that ends in {text[:20]!r}; use a fast tokenizer without a dummy prefix."
        )

    def _adds_space(self, ids: IntArray, text: str) -> bool:
        """Whether the first token begins with a space that `text` does not begin with."""
        if not len(ids) or text.startswith((" ", "▁")):
            return False
        token = self.tokenizer.convert_ids_to_tokens(int(ids[0]))
        return token.startswith(b" ") if isinstance(token, bytes) else str(token).startswith(("▁", "Ġ"))

    def _encode_piece(self, text: str) -> Encoded:
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        kwargs = {"return_offsets_mapping": True} if fast and self._scheme == "offsets" else {}
        batch = self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False, **kwargs)
        ids = np.asarray(batch["input_ids"], dtype=np.int32)
        if self._scheme != "offsets":
            spans = self._byte_spans(text, ids)
            if spans is not None:
                return Encoded(ids, *spans, 0)
            if not fast:
                raise ScoringError(
                    f"{type(self.tokenizer).__name__} does not reproduce the text it is given, and has no offsets: its "
                    "tokens cannot be matched to characters. Load a fast tokenizer (tokenizer=... in --model_args)."
                )
            batch = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return self._offset_spans(text, ids, np.asarray(batch["offset_mapping"], dtype=np.int32).reshape(-1, 2))

    @cached_property
    def _scheme(self) -> str:
        """`bytes` unless a short probe shows that this tokenizer rewrites text."""
        probe = "def f(x):\n    return x\t# Ünï – 😀\r\n"
        ids = np.asarray(self.tokenizer(probe, add_special_tokens=False)["input_ids"], dtype=np.int32)
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        return "offsets" if fast and self._byte_spans(probe, ids) is None else "bytes"

    @cached_property
    def _tables(self) -> list[tuple[_ByteScheme, list[bytes | None]]]:
        """The bytes of every token id, under each scheme."""
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        added = {index: str(token) for index, token in getattr(self.tokenizer, "added_tokens_decoder", {}).items()}
        return [
            (scheme, [scheme.text(added[i]).encode() if i in added else scheme.token(t) for i, t in enumerate(tokens)])
            for scheme in _SCHEMES
        ]

    def _byte_spans(self, text: str, ids: IntArray) -> tuple[IntArray, IntArray] | None:
        candidates = (_spans_by(scheme, table, text, ids) for scheme, table in self._tables)
        return next((spans for spans in candidates if spans is not None), None)

    def _offset_spans(self, text: str, ids: IntArray, offsets: IntArray) -> Encoded:
        if not len(ids):
            return Encoded(ids, ids, ids, len(text))
        end = _with_composed(text, offsets)
        before = np.concatenate([[0], end[:-1]]).astype(np.int32)
        start = np.minimum(offsets[:, 0], before)  # white space that was trimmed belongs to the token after it
        unknown = (
            ids == self.tokenizer.unk_token_id if self.tokenizer.unk_token_id is not None else np.zeros(len(ids), bool)
        )
        lost = int((end - start)[unknown].sum()) + len(text[int(end[-1]) :].strip())
        return Encoded(ids, start, end.astype(np.int32), lost)


_GUARDS = ("\n", "\t", "(", "■")


def _with_composed(text: str, offsets: IntArray) -> IntArray:
    """Ends of tokens from their offsets. Normalisation makes one character of several, such as a letter and its accent,
    and reports the place of the first: those that went into it belong to its tokens, not to the next.
    """
    end: IntArray = np.maximum.accumulate(offsets[:, 1])
    following = np.append(offsets[1:, 0], len(text))
    for index in np.flatnonzero(following > end):
        old = new = int(end[index])
        while new < following[index] and old and text[new] > "\u02ff" and _joins(text, old - 1, new):
            new += 1
        if new > old:
            first = int(np.searchsorted(end[: index + 1], old))  # several tokens may spell one character
            end[first : index + 1] = new
    return end


def _joins(text: str, start: int, index: int) -> bool:
    """Whether the character at `index` is a mark on, or composes with, those before it from `start` on."""
    before, after = (len(unicodedata.normalize("NFC", text[start:stop])) for stop in (index, index + 1))
    return bool(unicodedata.combining(text[index])) or after <= before


def _spans_by(
    scheme: _ByteScheme, table: list[bytes | None], text: str, ids: IntArray
) -> tuple[IntArray, IntArray] | None:
    """Characters of each token, if under `scheme` the tokens' bytes are those of the text; else None.

    The bytes of one character may lie in several tokens; each then covers it.
    """
    if len(ids) and int(ids.max()) >= len(table):
        return None
    parts = list(map(table.__getitem__, ids.tolist()))
    if None in parts:
        return None
    data, joined = scheme.text(text).encode(), b"".join(parts)  # type: ignore[arg-type]
    if joined not in (data, scheme.lead + data):
        return None
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))  # type: ignore[arg-type]
    stop = np.clip(np.cumsum(lengths) - (len(joined) - len(data)), 0, len(data))
    begin = np.concatenate([[0], stop[:-1]])
    first_bytes = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80
    char = np.concatenate([np.cumsum(first_bytes) - 1, [first_bytes.sum()]])
    end = np.where(stop > begin, char[np.maximum(stop - 1, 0)] + 1, char[begin])
    return char[begin].astype(np.int32), end.astype(np.int32)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _byte_level(token: Any) -> bytes | None:
    if isinstance(token, bytes):  # tiktoken-style tokenizers hand out raw bytes
        return token
    try:
        return bytes(_ALPHABET[c] for c in token)
    except (KeyError, TypeError):
        return None


def _sentencepiece(token: Any) -> bytes | None:
    if not isinstance(token, str):
        return None
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.encode(errors="replace")


class _ByteScheme(NamedTuple):
    """How a family of tokenizers writes bytes. `text` maps a text to the string that its tokens' bytes join to."""

    token: Callable[[Any], bytes | None]
    text: Callable[[str], str]
    lead: bytes  # what the family may put before a text


_SCHEMES = (
    _ByteScheme(_byte_level, str, b" "),
    # a space and a literal U+2581 are the same to SentencePiece
    _ByteScheme(_sentencepiece, lambda text: text.replace(" ", "▁"), "▁".encode()),
)


def token_labels(encoded: Encoded, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The set of character codes that each token covers.

    Args:
        encoded: n tokens.
        codes: uint8, one a character of the text (`filters.char_codes`).

    Returns:
        uint64, shape (n,): bit c is set iff the token covers a character of code c; 0 for a token of no characters.
    """
    if not len(encoded.ids):
        return np.zeros(0, dtype=np.uint64)
    bits = np.left_shift(np.uint64(1), np.append(codes, 0).astype(np.uint64))
    borders = np.column_stack([encoded.start, encoded.end]).ravel()
    union = np.bitwise_or.reduceat(bits, borders)[::2]
    return np.where(encoded.end > encoded.start, union, np.uint64(0))


def token_turns(encoded: Encoded, rendered: Rendered) -> IntArray:
    """The turn of each token's last character.

    Returns:
        int32, shape (n,); 0 for tokens that cover no character.
    """
    ends = np.array([span.end for span in rendered.spans], dtype=np.int64)
    turns = np.array([span.turn for span in rendered.spans] or [0], dtype=np.int32)
    index = np.searchsorted(ends, np.maximum(encoded.end - 1, 0), side="right")
    last = turns[np.minimum(index, len(turns) - 1)]
    return np.where(encoded.end > encoded.start, last, 0).astype(np.int32)
