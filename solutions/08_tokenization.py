# %% [markdown]
# # 8 · Tokenization
#
# What it takes: about 75 minutes, 16 points. Read first: chapter 8 up to “GPT-2's order of bytes”.
#
# Why it is worth building: everything that a GPT reads and writes goes through the few dozen lines
# of this notebook. At the end your class, given GPT-2's merges, turns any text into exactly the ids
# that GPT-2 was trained on, and you see what a vocabulary made for English does to Chinese.

# %% setup=true
from collections import Counter

import regex

from autograder.checks import tokenization as checks
from autograder.engine.notebook import points_so_far, ready

# GPT-2's pattern. PATTERN.findall(text) cuts a text into chunks that together are the whole text.
PATTERN = regex.compile(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

# %% [markdown]
# ## 8.1 `pair_counts` (2 points, 10 minutes)
#
# What training looks at in each of its steps. Read “Byte-pair encoding by hand” first.
#
# A text is kept as a table of its different words and how often each occurs, and a word is a tuple
# of ids: `{(108, 111, 119): 5, (108, 111): 2}` is five times *low* and twice *lo*.
#
# <!-- hints: pair_counts -->


# %% answer="pair_counts"
def pair_counts(words):
    """How often each pair of neighbors occurs.

    words: a dict from words to counts; a word is a tuple of ids, at least one, and its count says
    how often it stands in the text. Returns a Counter (any dict will do) from pairs (left, right)
    to how often right follows left inside of a word. Pairs may overlap: (7, 7, 7) holds two.

    Example: pair_counts({(1, 2, 1, 2): 3, (2, 1): 1}) is {(1, 2): 6, (2, 1): 4}.
    """
    ### BEGIN SOLUTION
    counts = Counter()
    for word, n in words.items():
        for pair in zip(word, word[1:]):  # noqa: B905, RUF007
            counts[pair] += n
    return counts
    ### END SOLUTION


# %% check="pair_counts"
checks.pair_counts.check(pair_counts)

# %% [markdown]
# The pairs of bytes that occur most often in the nine plays. The first merge joins the winner.

# %%
if ready(checks.pair_counts):
    from rnn2gpt.data import load_text

    text = load_text()
    chunks = Counter(PATTERN.findall(text))
    words = {tuple(chunk.encode()): n for chunk, n in chunks.items()}
    print(f"{len(text):,} characters, {chunks.total():,} chunks, {len(words):,} different ones")
    for pair, n in Counter(pair_counts(words)).most_common(8):
        print(f"{bytes(pair)!r:>8}  {n:,}")

# %% [markdown]
# ## 8.2 `merge_pair` (2 points, 10 minutes)
#
# What a merge does to a word. Training and encoding both call it.
#
# <!-- hints: merge_pair -->


# %% answer="merge_pair"
def merge_pair(ids, pair, new_id):
    """The ids with `new_id` in place of each occurrence of `pair`.

    ids: a list of ints, perhaps empty. pair: (left, right). Occurrences are found from left to
    right and do not overlap. Returns a new list; `ids` is left alone.

    Example: merge_pair([5, 5, 5, 1, 5, 5], (5, 5), 256) is [256, 5, 1, 256].
    """
    ### BEGIN SOLUTION
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged
    ### END SOLUTION


# %% check="merge_pair"
checks.merge_pair.check(merge_pair)

# %% [markdown]
# Merges on merges: eight rounds on one line, each joining the pair that occurs most often in it.

# %%
if ready(checks.pair_counts, checks.merge_pair):
    line = "she sells sea shells by the sea shore"
    ids, tokens = list(line.encode()), [bytes([byte]) for byte in range(256)]
    for _ in range(8):
        best, n = Counter(pair_counts({tuple(ids): 1})).most_common(1)[0]
        tokens.append(tokens[best[0]] + tokens[best[1]])
        ids = merge_pair(ids, best, len(tokens) - 1)
        cut = "|".join(tokens[i].decode() for i in ids)
        print(f"{tokens[-1].decode()!r:>8} × {n}  {len(ids):>2} ids  {cut}")

# %% [markdown]
# ## 8.3 `train_bpe` (5 points, 25 minutes)
#
# A vocabulary from a text. Read “Learning the merges” and “The pattern that cuts first”.
#
# 1. Cut the text at the special tokens; they take no part. Cut each part with `PATTERN`.
# 2. A chunk starts as the tuple of its UTF-8 bytes. Keep a table of the different ones and how
#    often each occurs.
# 3. Count the pairs; merge the most frequent one everywhere; remember it. Repeat.
#
# A tie goes to the lexicographically larger pair: compare the two bytes objects of the left tokens,
# then those of the right ones, as Python compares `(left, right)`.
#
# Call your `pair_counts` and `merge_pair`; if one of them is not right yet, write its loop here.
#
# <!-- hints: train_bpe -->


# %% answer="train_bpe"
def train_bpe(text, vocab_size, special_tokens=()):
    """The merges learned from `text`, in the order in which they were made.

    text: str. special_tokens: different strings, none of them empty; none begins another.
    Returns a list of pairs (left, right) of bytes objects. Ids 0 to 255 are the bytes, 256 is the
    first merge, and so on; the special tokens come last. All of them together are `vocab_size`,
    which is at least 256 + len(special_tokens); the list is shorter when no pair is left to merge.

    Example: train_bpe("ab abc", 258) is [(b"a", b"b"), (b"ab", b"c")]. The chunks are "ab" and
    " abc"; (a, b) occurs twice, the others once. Then (" ", ab) and (ab, c) occur once each, and
    (b"ab", b"c") is larger than (b" ", b"ab").
    """
    ### BEGIN SOLUTION
    parts = [text]
    if special_tokens:
        parts = regex.split("|".join(map(regex.escape, special_tokens)), text)
    chunks = Counter(chunk for part in parts for chunk in PATTERN.findall(part))
    words = {tuple(chunk.encode()): n for chunk, n in chunks.items()}
    tokens, merges = [bytes([byte]) for byte in range(256)], []
    while len(tokens) < vocab_size - len(special_tokens):
        counts = pair_counts(words)
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], tokens[pair[0]], tokens[pair[1]]))
        left, right = tokens[best[0]], tokens[best[1]]
        words = {tuple(merge_pair(word, best, len(tokens))): n for word, n in words.items()}
        merges.append((left, right))
        tokens.append(left + right)
    return merges
    ### END SOLUTION


# %% check="train_bpe"
checks.train_bpe.check(train_bpe, pair_counts=pair_counts, merge_pair=merge_pair)

# %% [markdown]
# Your first vocabulary: 256 merges from the first 60,000 characters of *Coriolanus*.

# %%
if ready(checks.train_bpe):
    from rnn2gpt.data import load_text

    text = load_text()[:60_000]
    merges = train_bpe(text, 256 + 256)
    tokens = [(left + right).decode() for left, right in merges]
    print("the first: ", tokens[:16])
    print("the last:  ", tokens[-8:])
    print("the longest:", sorted(tokens, key=len)[-12:])

# %% [markdown]
# ## 8.4 `BPETokenizer` (5 points, 20 minutes)
#
# Text to ids and back, with merges that somebody learned. Read “Encoding and decoding” and “GPT-2's
# order of bytes”.
#
# Encoding cuts the text as training did: at special tokens, then with `PATTERN`. In each chunk, of
# all pairs that have a merge, the one **made first** is merged, wherever it stands; then the next,
# until no pair in the chunk has a merge.
#
# <!-- hints: BPETokenizer -->


# %% answer="BPETokenizer"
class BPETokenizer:
    """Text to ids and back.

    merges: a list of pairs of bytes objects, in the order in which they were made.
    special_tokens: different strings, none of them empty; one may begin another. byte_order: None,
    or a list of the numbers 0 to 255 in some order.

    The ids: i below 256 is the byte byte_order[i], which is byte i where byte_order is None; merge
    k makes the id 256 + k; special token j has the id 256 + len(merges) + j.
    """

    def __init__(self, merges, special_tokens=(), byte_order=None):
        ### BEGIN SOLUTION
        byte_order = range(256) if byte_order is None else byte_order
        self.tokens = [bytes([byte]) for byte in byte_order]  # id → bytes
        ids = {token: i for i, token in enumerate(self.tokens)}
        self.byte_ids = {byte: i for i, byte in enumerate(byte_order)}
        self.new_ids = {}  # pair of ids → the id that it becomes; the smaller, the earlier
        for left, right in merges:
            self.new_ids[ids[left], ids[right]] = ids[left + right] = len(self.tokens)
            self.tokens.append(left + right)
        self.special_ids = {token: len(self.tokens) + j for j, token in enumerate(special_tokens)}
        self.tokens += [token.encode() for token in special_tokens]
        ### END SOLUTION

    def encode(self, text):
        """The ids of `text`, a list of ints.

        A special token in the text becomes its one id; they are looked for from the left, and of
        two that begin at the same place the longer one counts.

        Example: BPETokenizer([(b"b", b"c"), (b"a", b"b")]).encode("abc") is [97, 256]: (b, c) was
        made before (a, b), and then no b is left.
        """
        ### BEGIN SOLUTION
        parts = [text]
        if self.special_ids:
            longest_first = sorted(self.special_ids, key=len, reverse=True)
            parts = regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)
        ids = []
        for part in parts:
            if part in self.special_ids:
                ids.append(self.special_ids[part])
            else:
                for chunk in PATTERN.findall(part):
                    ids += self.encode_chunk(chunk)
        return ids

    def encode_chunk(self, chunk):
        ids = [self.byte_ids[byte] for byte in chunk.encode()]
        while pairs := [pair for pair in zip(ids, ids[1:]) if pair in self.new_ids]:  # noqa: B905, RUF007
            first = min(pairs, key=self.new_ids.get)
            ids = merge_pair(ids, first, self.new_ids[first])
        return ids
        ### END SOLUTION

    def decode_bytes(self, ids):
        """The bytes that the ids stand for, as one bytes object, valid UTF-8 or not."""
        ### BEGIN SOLUTION
        return b"".join(self.tokens[i] for i in ids)
        ### END SOLUTION

    def decode(self, ids):
        """The text that the ids stand for; bytes that are not UTF-8 become U+FFFD.

        Example: without merges, decode([228, 189, 160]) is "你" and decode([228, 97]) "\\ufffda".
        """
        ### BEGIN SOLUTION
        return str(self.decode_bytes(ids), "utf-8", errors="replace")
        ### END SOLUTION


# %% check="BPETokenizer"
checks.BPETokenizer.check(BPETokenizer, merge_pair=merge_pair)

# %% [markdown]
# Give your class GPT-2's merges and GPT-2's order of bytes (the first run downloads them, half a
# megabyte). The ids below are GPT-2's own, to the last one.

# %%
if ready(checks.BPETokenizer):
    from rnn2gpt.tokenizer import load_gpt2

    theirs = load_gpt2()
    gpt2 = BPETokenizer(theirs.merges, theirs.special_tokens, theirs.byte_order)
    for line in ("Hello, world!", "don't    panic", "语言模型", "👩‍👩‍👧", "3.14159<|endoftext|>"):
        ids = gpt2.encode(line)
        assert ids == theirs.encode(line) and gpt2.decode(ids) == line
        print(f"{line!r}: {ids}\n    {[gpt2.decode_bytes([i]) for i in ids]}")

# %% [markdown]
# Both vocabularies at work on a passage that yours was not trained on. Each box is one token.

# %%
if ready(checks.train_bpe, checks.BPETokenizer):
    from html import escape

    from IPython.display import HTML, display

    mine = BPETokenizer(merges)
    passage = load_text()[-1200:-900]
    for name, tokenizer in (("256 merges of yours", mine), ("GPT-2's 50,000", gpt2)):
        ids = tokenizer.encode(passage)
        boxes = "".join(
            '<span style="outline: 1px solid #8888; background: '
            f'{("#0072b233", "#d55e0033")[n % 2]}">{escape(tokenizer.decode([i]))}</span>'
            for n, i in enumerate(ids)
        )
        title = f"{name}: {len(ids)} tokens for {len(passage)} characters"
        display(HTML(f'<p>{title}</p><pre style="white-space: pre-wrap">{boxes}</pre>'))

# %% [markdown]
# ## 8.5 Your own experiment (2 points, 10 minutes)
#
# The cell below takes texts that say the same thing in English and in Chinese: menus, messages and
# forms of programs. It learns three vocabularies of equal size, from the English, from the Chinese
# and from half of each, and writes down how many tokens a character costs in each language.

# %%
if ready(checks.train_bpe, checks.BPETokenizer):
    from rnn2gpt.translation import load_pairs

    pairs = load_pairs("gettext")
    english, chinese = ("\n".join(side) for side in zip(*pairs["train"][:600], strict=True))
    half = len(english) // 2, len(chinese) // 2
    sources = {
        "English": english,
        "Chinese": chinese,
        "both": english[: half[0]] + "\n" + chinese[: half[1]],
    }
    held_out = ["\n".join(side) for side in zip(*pairs["test"][:300], strict=True)]
    for name, source in sources.items():
        tokenizer = BPETokenizer(train_bpe(source, 256 + 200))
        costs = [len(tokenizer.encode(text)) / len(text) for text in held_out]
        print(f"learned from {name:<8}{costs[0]:.2f} tokens per English character,", end=" ")
        print(f"{costs[1]:.2f} per Chinese one")

# %% [markdown] written="written_08" points=2
# Before you run the cell above, write down what a Chinese character will cost in the vocabulary
# learned from English alone, and why. Then run it. Which of the three vocabularies would you choose
# for a model that has to translate, and what would you pay for it? Two or three sentences.
#
# ### BEGIN SOLUTION
# A full answer expects three tokens for a Chinese character in the English vocabulary: a common
# Chinese character is three bytes in UTF-8, and no merge learned from English joins them. (The
# measured mean is lower, since the Chinese texts hold Latin letters, digits and spaces too.) It
# compares this with the two measured numbers of the other vocabularies, chooses the one learned
# from both for translation, and names its price from the output: with the same number of merges
# shared by two languages, each of them costs more tokens than in its own vocabulary (or, to keep
# both short, the vocabulary and so the embedding must grow).
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
