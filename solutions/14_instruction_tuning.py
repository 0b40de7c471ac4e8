# %% [markdown]
# # 14 · Instruction tuning and preferences
#
# What it takes: about 60 minutes, 13 points. Read first: chapter 14 up to “A batch of answers” for
# the first two parts, “Judging an answer” and “From preferences to a loss” for the others.
#
# Why it is worth building: these four functions, some thirty lines, are what stands between a model
# that continues text and one that answers. At the end a small GPT trains on your labels and your
# batches, your measure judges it, and your loss teaches it manners.

# %% setup=true
import re
import string

import torch
import torch.nn.functional as F

from autograder.checks import instruction_tuning as checks
from autograder.engine.notebook import points_so_far, ready

# %% [markdown]
# ## 14.1 `build_labels` (3 points, 10 minutes)
#
# Which tokens the model is trained to write. Read “Which tokens count” and “Where an answer ends”
# first.
#
# The loss that will use the labels shifts them itself: it compares the logits at place t with the
# label at place t + 1. Do not shift here.
#
# <!-- hints: build_labels -->


# %% answer="build_labels"
def build_labels(prompt_ids, response_ids, ignore_index=-100):
    """One training row of a prompt and its response, and which of its tokens count.

    prompt_ids, response_ids: lists of ints; the last id of the response is the end of the answer,
    put there by the caller. Returns (ids, labels), two new lists of one length: the prompt followed
    by the response, and for each of these tokens the token itself if it belongs to the response,
    else ignore_index. The prompt may be empty; then every token counts.

    Example: build_labels([5, 6, 7], [8, 2]) is ([5, 6, 7, 8, 2], [-100, -100, -100, 8, 2]).
    """
    ### BEGIN SOLUTION
    ids = [*prompt_ids, *response_ids]
    return ids, [ignore_index] * len(prompt_ids) + list(response_ids)
    ### END SOLUTION


# %% check="build_labels"
checks.build_labels.check(build_labels)

# %% [markdown]
# Something real to use it on: number words into digits, and remarks to be answered, some with a
# polite closing. The tokens are byte pairs learned from the examples; byte 3, ASCII's “end of
# text”, ends an answer. What is in brackets counts in the loss.

# %%
if ready(checks.build_labels):
    import random

    from rnn2gpt.tasks import load_tasks
    from rnn2gpt.tokenizer import BPETokenizer, train_bpe
    from rnn2gpt.translation import english_number

    numbers = [(english_number(n), str(n)) for n in range(1000)]
    random.Random(0).shuffle(numbers)
    talk = [(e.prompt, e.response) for e in load_tasks()["train"] if e.task == "talk"]
    training = 2 * numbers[100:] + talk[:3000]
    seen = {prompt for prompt, _ in training}
    held_out = {"numbers": numbers[:100], "talk": [x for x in talk[3000:] if x[0] not in seen]}
    bpe = BPETokenizer(train_bpe(" ".join(f"{p} {r}" for p, r in training), 500))
    [END] = bpe.encode("\x03")

    def encode(prompt, response):
        return build_labels(bpe.encode(prompt + "\n"), [*bpe.encode(" " + response), END])

    for prompt, response in (training[0], *talk[:3]):
        ids, labels = encode(prompt, response)
        shown = [bpe.decode([i]).replace("\n", "⏎").replace("\x03", "end") for i in ids]
        print("".join(f"[{c}]" if y != -100 else c for c, y in zip(shown, labels, strict=True)))

# %% [markdown]
# ## 14.2 `collate` (3 points, 15 minutes)
#
# Rows of unequal length in tables of one shape. Read “A batch of answers” first.
#
# Mind one case above all: `pad_id` may be a token that occurs in the rows. GPT-2 has no token for
# padding, so nearly everybody pads with the token that ends a text, and the end of an answer must
# keep its label.
#
# <!-- hints: collate -->


# %% answer="collate"
def collate(examples, pad_id):
    """A batch of rows, padded on the right to the longest.

    examples: list of (ids, labels), two lists of ints of one length, as build_labels makes them.
    Returns ids: (B, T) int64, padded with pad_id; labels: (B, T) int64, padded with -100; and
    attention_mask: (B, T) bool, True at real tokens. What is padding depends on the lengths alone:
    pad_id may also be a real token. Leaves `examples` alone.

    Example: collate([([5, 2], [-100, 2]), ([7], [-100])], pad_id=2) gives the ids [[5, 2], [7, 2]],
    the labels [[-100, 2], [-100, -100]] and the mask [[True, True], [True, False]].
    """
    ### BEGIN SOLUTION
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.full((len(examples), longest), pad_id)
    labels = torch.full((len(examples), longest), -100)
    attention_mask = torch.zeros(len(examples), longest, dtype=torch.bool)
    for i, (row, targets) in enumerate(examples):
        n = len(row)
        ids[i, :n], labels[i, :n] = torch.tensor(row), torch.tensor(targets)
        attention_mask[i, :n] = True
    return ids, labels, attention_mask
    ### END SOLUTION


# %% check="collate"
checks.collate.check(collate)

# %% [markdown]
# A small GPT learns both tasks from your rows and batches, in some ten seconds. The mask is not
# used: the model reads from left to right, so nothing real comes after padding on the right. Only
# the answers count in the loss that is printed.

# %%
if ready(checks.build_labels, checks.collate):
    from rnn2gpt.gpt import GPT, GPTConfig
    from rnn2gpt.training import cosine_schedule

    rows = [encode(prompt, response) for prompt, response in training]
    T, n_steps = max(len(ids) for ids, _ in rows), 400

    def train(model, batches, max_lr, n_steps):
        """Steps of AdamW on whatever loss the batches give."""
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.95))
        for step in range(n_steps):
            optimizer.param_groups[0]["lr"] = cosine_schedule(step, max_lr, 0.0, 20, n_steps)
            loss = batches(model)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if (step + 1) % (n_steps // 4) == 0:
                print(f"  step {step + 1:4}: loss {loss.item():.3f}")
        return model.eval()

    def answer_loss(model):
        drawn = torch.randint(len(rows), (24,), generator=chance).tolist()
        ids, labels, _ = collate([rows[i] for i in drawn], pad_id=END)
        logits = model(ids)[0][:, :-1]  # (B, T − 1, V): the loss shifts
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    chance = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=bpe.vocab_size, block_size=T + 24, n_layers=2, n_heads=4, d_model=64
    )
    model = train(GPT(config), answer_loss, 8e-3, n_steps)

# %% [markdown]
# ## 14.3 `exact_match` (2 points, 15 minutes)
#
# Whether an answer is right, when there is one right answer. Read “Judging an answer” first.
#
# The order of the four steps is part of the contract: other people's numbers were made with it.
#
# <!-- hints: exact_match -->


# %% answer="exact_match"
def exact_match(prediction, reference):
    """Whether two answers are the same after SQuAD's normalization.

    Each text, in this order: is put in lower case; loses every character of string.punctuation;
    loses the words a, an and the; has its runs of white space made single spaces, with none at the
    ends. Returns a bool.

    Example: exact_match("The pound.", "pound") is True; exact_match("two pounds", "pound") and
    exact_match("banana", "bnn") are False.
    """
    ### BEGIN SOLUTION
    forms = []
    for text in (prediction, reference):
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        forms.append(" ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split()))
    return forms[0] == forms[1]
    ### END SOLUTION


# %% check="exact_match"
checks.exact_match.check(exact_match)

# %% [markdown]
# Your measure on the model: prompts that it never saw. A polite closing may end an answer or not,
# so it is taken off before the comparison. What do the wrong answers have in common?

# %%
if ready(checks.build_labels, checks.collate, checks.exact_match):
    from rnn2gpt.generation import generate
    from rnn2gpt.tasks import ends_politely, without_closing

    def ask(model, prompt, n=1, temperature=0.0):
        """n answers to one prompt, each up to its end."""
        start = torch.tensor([bpe.encode(prompt + "\n")] * n)  # (n, T)
        text = generate(model, start, 24, temperature, generator=chance, end_id=END)
        rows = text[:, start.shape[1] :].tolist()
        return [bpe.decode(r[: r.index(END)] if END in r else r).strip() for r in rows]

    for task, examples in held_out.items():
        given = [without_closing(ask(model, prompt)[0]) for prompt, _ in examples[:50]]
        right = [
            exact_match(text, without_closing(wanted))
            for text, (_, wanted) in zip(given, examples, strict=False)
        ]
        print(f"{task}: {sum(right)} of {len(right)} right")
        wrong = [i for i, ok in enumerate(right) if not ok]
        for i in [right.index(True), *wrong[:4]]:
            print(f"  {'✓' if right[i] else '✗'} {examples[i][0]!r} → {given[i]!r}")

# %% [markdown]
# ## 14.4 `dpo_loss` (3 points, 10 minutes)
#
# A preference as a loss. Read “From preferences to a loss” first.
#
# <!-- hints: dpo_loss -->


# %% answer="dpo_loss"
def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    """Direct preference optimization: the mean over the pairs of −ln σ(β · margin).

    All four: (B,), the summed log-probabilities of whole answers, under the policy that learns and
    under the reference that stays. The margin of a pair is how much more the policy prefers the
    chosen answer to the rejected one than the reference does. beta: a float above 0. Returns a
    scalar, finite for margins of any size.

    Example: where the policy is the reference every margin is 0 and the loss is ln 2 = 0.6931. With
    beta=1, policy sums of −3 and −5 and reference sums of −4 and −4 have the margin 2 and the loss
    0.1269.
    """
    ### BEGIN SOLUTION
    policy = policy_chosen - policy_rejected
    reference = reference_chosen - reference_rejected
    return -F.logsigmoid(beta * (policy - reference)).mean()
    ### END SOLUTION


# %% check="dpo_loss"
checks.dpo_loss.check(dpo_loss)

# %% [markdown]
# Manners. About three in ten of the training answers end politely, so the model's do too when it
# samples. Of its own answers to one remark, one that does and one that does not make a pair; your
# loss trains a copy of the model on such pairs. The prompts it is measured on are not among them.

# %%
BETA = 0.1
N_STEPS = 40

# %%
if ready(checks.build_labels, checks.collate, checks.exact_match, checks.dpo_loss):
    import copy

    def log_probability(model, examples):
        """Σ ln p of each row's labels: (B,)."""
        ids, labels, _ = collate(examples, pad_id=END)
        logits = model(ids)[0][:, :-1].transpose(1, 2)  # (B, V, T − 1)
        return -F.cross_entropy(logits, labels[:, 1:], reduction="none").sum(dim=1)

    def politeness(model):
        """The share of sampled answers that end politely, on held-out prompts."""
        given = [t for prompt, _ in held_out["talk"][:40] for t in ask(model, prompt, 3, 1.0)]
        words = sum(len(text.split()) for text in given) / len(given)
        return f"{sum(map(ends_politely, given)) / len(given):.0%} end politely, {words:.1f} words"

    pairs = []
    for prompt, _ in talk[:100]:
        given = ask(model, prompt, 5, temperature=1.0)
        good = [text for text in given if ends_politely(text)]
        bad = [text for text in given if not ends_politely(text)]
        if good and bad:
            pairs.append((encode(prompt, good[0]), encode(prompt, bad[0])))
    chosen, rejected = [one for one, _ in pairs], [other for _, other in pairs]
    with torch.no_grad():
        old = log_probability(model, chosen), log_probability(model, rejected)

    def preference_loss(policy):
        some = torch.randint(len(pairs), (16,), generator=chance).tolist()
        new = [log_probability(policy, [part[i] for i in some]) for part in (chosen, rejected)]
        return dpo_loss(*new, old[0][some], old[1][some], BETA)

    print(f"{len(pairs)} pairs. Before: {politeness(model)}")
    polite = train(copy.deepcopy(model).train(), preference_loss, 3e-4, N_STEPS)
    print(f"After: {politeness(polite)}")
    with torch.no_grad():
        new = log_probability(polite, chosen), log_probability(polite, rejected)
    for name, before, after in zip(("chosen", "rejected"), old, new, strict=True):
        print(f"  ln p of the {name} answers: {before.mean():.1f} before, {after.mean():.1f} after")
    for prompt, _ in held_out["talk"][:3]:
        print(f"  {prompt!r} → {ask(polite, prompt)[0]!r}")

# %% [markdown] written="written_14" points=2
# Before you change anything, write down what you expect of BETA = 0.01 and of BETA = 1.0, with the
# same number of steps: for the share of polite answers, and for the log-probability of the chosen
# answers. Then set each, run the cell again, and explain in two sentences what you find. Did the
# chosen answers become likelier, or only the rejected ones less likely?
#
# ### BEGIN SOLUTION
# A full answer gives the measured numbers of at least two settings. In theory a small β lets the
# policy go far, because the margin has to grow until β times it settles σ, and a large β stops it
# early. In so few steps with AdamW, which divides a gradient by its size, β may change little: a
# student who finds that and says why has understood more than one who reports what was expected.
# Nothing in the loss asks that the chosen answers become likelier in themselves: the margin also
# grows when both fall and the rejected ones fall faster. Full points ask for the numbers and for
# this last observation, either way, in the student's own run.
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
