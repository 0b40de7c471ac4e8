"""The models of *From RNN to GPT*, one module for each chapter that builds one.

| module       | what it holds                                                       | chapter |
|--------------|---------------------------------------------------------------------|---------|
| `data`       | the text, its characters as numbers, the split, random batches      | 01      |
| `metrics`    | cross-entropy, perplexity, bits per character                       | 01      |
| `ngram`      | bigram tables and the interpolated Kneser–Ney model                 | 01      |
| `rnn`        | the tanh cell, unrolled; gradient clipping; a character model       | 02      |
| `lstm`       | LSTM and GRU cells, the layer, a character model, sampling          | 03      |
| `tokenizer`  | byte-level byte-pair encoding; GPT-2's tokenizer                    | 08      |
| `training`   | one training loop for all models: budgets, schedule, exact resume   | 10      |
| `checkpoint` | models on disk, without pickle; the list of models that train       | 10      |

The exercises build the explicit version of each part; here PyTorch's fused operations do the same
arithmetic, and `tests/` prove that the two agree. Every module runs on any device.
"""

__version__ = "0.1.0"
